"""Which policies an evaluation compares, and one engine that answers for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.inference.adapter_files import read_any_adapter
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.peft import CONFIG_FILE, AdapterShape, read_peft
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.lora import LoRASettings, load_adapter
from selfplay_ray.models import resolve_model
from selfplay_ray.run_adapters import find_adapter

BASE = "base"


@dataclass(frozen=True, slots=True)
class Policy:
    """The base model, or an adapter on it: of ``version`` in its run, and of ``rank``. ``name`` is for people."""

    name: str
    path: Path | None = None
    version: int = 0
    rank: int = 0

    @classmethod
    def at(cls, source: Path, version: int | None = None) -> Self:
        """The adapter at ``source``: a folder of PEFT's, an adapter's file, or a run's folder.

        Raises:
            ConfigError, AdapterError: there is none.
        """
        if (source / CONFIG_FILE).is_file():
            return cls(source.resolve().name, source, rank=read_peft(source)[1].r)
        path = find_adapter(source, version).path
        saved = load_adapter(path)
        return cls(path.stem, path, saved.version, saved.settings.rank)

    @property
    def adapter(self) -> str | None:
        """What the engine calls it."""
        return None if self.path is None else self.name


def choose_policies(
    run: Path | None, version: int | None, adapter: Path | None, against: str
) -> list[Policy]:
    """What is compared with ``against`` (first), and that itself; the base model alone where nothing is named.

    Raises:
        ConfigError: they contradict each other, or there is no such run or version.
        AdapterError: there is no such adapter, or the run has none yet.
    """
    if version is not None and (run is None or adapter is not None):
        raise ConfigError("--version picks among a run's adapters: give --run, and no --adapter")
    first = Policy(BASE) if against == BASE else Policy.at(Path(against))
    if run is None and adapter is None:
        return [first]
    second = Policy.at(adapter) if adapter is not None else Policy.at(run or Path(), version)
    if second.name == first.name:
        second = replace(second, name=f"{second.name}-2")
    return [first, second]


def start_engine(config: RunConfig, policies: Sequence[Policy]) -> Engine:
    """An engine of the run's model with room for every policy's adapter."""
    rank = max([config.lora_rank, *(policy.rank for policy in policies)])
    lora = LoRASettings(rank, config.lora_scale)  # on all layers: what an adapter lacks is zero
    return Engine(
        resolve_model(config.model_path),
        lora=lora,
        max_adapters=len(policies),
        max_batch_size=config.concurrency,
    )


async def load_policy(engine: Engine, policy: Policy, scale: float) -> None:
    """Give ``engine`` the policy's adapter.

    Raises:
        AdapterError: it can't be read, or doesn't fit the model.
    """
    if policy.path is not None:
        weights = read_any_adapter(policy.path, AdapterShape(engine.adapter_shapes, scale))
        await engine.load_adapter(weights, policy.version, policy.name)


def client_of(policy: Policy, engine: Engine, chat: ChatTokenizer, max_tokens: int) -> EngineClient:
    """Lets ``policy`` answer what roles are asked; judges stay the base model."""

    async def generate(request: GenerationRequest) -> Generation:
        judges = request.adapter is None
        return await engine.generate(request if judges else replace(request, adapter=policy.adapter))

    return EngineClient(chat, generate, lambda: policy.version, max_tokens)
