"""The training jobs by the name of their task: each is a module ``train_TASK`` here.

It has ``make_arena(config) -> Arena``, the annotation of whose ``config`` says which :class:`RunConfig` the task
takes, and ``main(argv) -> int``.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from selfplay_ray import jobs
from selfplay_ray.errors import ConfigError

TRAIN_PREFIX = "train_"


def tasks() -> list[str]:
    """The tasks there are."""
    names = (module.name for module in iter_modules(jobs.__path__))
    return sorted(name.removeprefix(TRAIN_PREFIX) for name in names if name.startswith(TRAIN_PREFIX))


def known_tasks() -> str:
    """The tasks there are, for a sentence."""
    return ", ".join(tasks()) or "none yet"


def training_job(task: str) -> ModuleType:
    """The module that trains ``task``, whose name may have hyphens.

    Raises:
        ConfigError: there is no such task.
    """
    name = task.replace("-", "_")
    if name not in tasks():
        raise ConfigError(f"unknown task {task!r}; known: {known_tasks()}")
    return import_module(f"{jobs.__name__}.{TRAIN_PREFIX}{name}")
