"""An environment of verifiers' by its name: where it comes from, what it is told, and its tasks as plain data."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from selfplay_ray.errors import ConfigError
from selfplay_ray.integrations.textarena_game import Chance

TaskData = dict[str, Any]
"""A task as JSON, which its taskset's own types are made of again."""

HARNESS = "selfplay_chat"
UNFIT = (
    ImportError,
    AttributeError,
    TypeError,
    ValueError,
    OSError,
)  # how verifiers refuses what it is given


@dataclass(frozen=True, slots=True)
class Environment:
    """What names an environment; it travels to the workers, which make it anew.

    ``name`` is a taskset's, or ``ENVIRONMENT+TASKSET`` where another environment plays it; each is an id as verifiers
    knows it (an installed package's name), ``MODULE:CLASS`` or ``FILE.py:CLASS``.
    ``options`` are verifiers' for the environment, as JSON. ``seconds`` bound one episode.
    """

    name: str
    options: str = "{}"
    seconds: float = 600.0

    def make(self) -> Any:
        """The ``vf.Env``.

        Raises:
            ConfigError: verifiers isn't installed, or there is no such environment, or not with these options.
        """
        vf = import_verifiers()
        self._register_harness()
        try:
            with Chance(0).in_place():  # importing and making them may reseed Python's and NumPy's
                return vf.load_environment(self._config(vf))
        except UNFIT as error:
            raise ConfigError(
                f"verifiers' environment {self.name!r} can't be had with the options {self.options}: "
                f"{_one_line(error)}"
            ) from error

    def tasks(self, env: Any, limit: int) -> list[TaskData]:
        """The first ``limit`` tasks of ``env``; 0 is all of them.

        Raises:
            ConfigError: there are none, or no end of them.
        """
        taskset = env.taskset
        if not limit and not taskset.bounded:
            raise ConfigError(f"verifiers' environment {self.name!r} has no end of tasks; set a limit")
        with Chance(0).in_place():
            tasks = list(islice(taskset, limit or None))
        if not tasks:
            raise ConfigError(f"verifiers' environment {self.name!r} has no tasks")
        return [_plain(task.data) for task in tasks]

    def _config(self, vf: ModuleType) -> Any:
        """The configuration, with what would reach out of this machine replaced unless it was asked for: agents run
        here, and without a harness of their own they converse."""
        environment, _, taskset = self.name.rpartition("+")
        named = {"id": _plugin_id(environment, vf.Env), "taskset": {"id": _plugin_id(taskset, vf.Taskset)}}
        config = vf.resolve_env_config(_merged(named, json.loads(self.options)))
        default = vf.default_agent_harness(config.taskset.id)
        changes: dict[str, Any] = {}
        for seat, agent in agents(vf, config).items():
            update: dict[str, Any] = {"retries": vf.RetryConfig()}  # an attempt given up would be trained on
            if "runtime" not in agent.model_fields_set:
                update["runtime"] = vf.SubprocessConfig()
            if agent.harness is None and default.id == "bash":
                update["harness"] = vf.HarnessConfig(id=HARNESS)
            changes[seat] = agent.model_copy(update=update)
        if config.timeout.episode is None:
            changes["timeout"] = config.timeout.model_copy(update={"episode": self.seconds})
        return config.model_copy(update=changes)

    def _register_harness(self) -> None:
        """verifiers imports a harness by its id, which must be a module's name without dots."""
        sys.modules.setdefault(
            HARNESS, importlib.import_module("selfplay_ray.integrations.verifiers_harness")
        )


def agents(vf: ModuleType, config: Any) -> dict[str, Any]:
    """Who plays, as ``config`` of an environment has it: each agent's configuration by its seat's name."""
    return {seat: agent for seat, agent in config if isinstance(agent, vf.AgentConfig)}


def task_of(env: Any, data: TaskData) -> Any:
    """The ``vf.Task`` that ``data`` says."""
    task = type(env.taskset).task_type()
    return task(task.data_type().model_validate(data), env.config.taskset.task)


def import_verifiers() -> ModuleType:
    """Raises ConfigError where it isn't installed, or only older than 0.4."""
    try:
        import verifiers.v1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "verifiers":
            raise
        raise ConfigError(
            "verifiers 0.4 isn't installed; it comes with an extra: pip install 'selfplay-ray[verifiers]'"
        ) from None
    return verifiers.v1  # type: ignore[no-any-return]


def _plugin_id(part: str, base: type) -> str:
    """An id that verifiers imports: for ``MODULE:CLASS`` that of a module that exports nothing but the class."""
    source, _, name = part.rpartition(":")
    if not source:
        return part
    found = getattr(_module(source), name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise TypeError(f"{source} has no {base.__name__} {name!r}")
    plugin = f"selfplay_plugin_{hashlib.sha256(part.encode()).hexdigest()[:16]}"
    stand_in = ModuleType(plugin, f"{part}, where verifiers finds it.")
    stand_in.__dict__.update({"__all__": [name], name: found})
    sys.modules[plugin] = stand_in
    return plugin


def _module(source: str) -> ModuleType:
    if not source.endswith(".py"):
        return importlib.import_module(source)
    path = Path(source).resolve()
    name = f"selfplay_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} can't be imported")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _plain(data: Any) -> TaskData:
    """``data`` as JSON, without the fields that say nothing; what is in the others is whole."""
    fields = type(data).model_fields.items()
    told = {
        name for name, field in fields if getattr(data, name) != field.get_default(call_default_factory=True)
    }
    plain: TaskData = data.model_dump(mode="json", include=told | set(data.model_extra or ()))
    return plain


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        given = merged.get(key)
        both = isinstance(value, dict) and isinstance(given, dict)
        merged[key] = _merged(given, value) if both and isinstance(given, dict) else value
    return merged


def _one_line(error: BaseException) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
