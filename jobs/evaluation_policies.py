"""Which policies an evaluation compares, and the engines that answer for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
    """The base model, or an adapter on it of ``rank`` (0: all weights in its place), and ``version`` in its run.

    ``name`` is for people; ``model`` is what the adapter's run called its model, None where that isn't known.
    """

    name: str
    path: Path | None = None
    version: int = 0
    rank: int = 0
    model: str | None = None

    @property
    def whole(self) -> bool:
        """Whether it is a model of its own."""
        return self.path is not None and self.rank == 0

    @classmethod
    def at(cls, source: Path, version: int | None = None) -> Self:
        """The adapter at ``source``: a folder of PEFT's, an adapter's file, or a run's folder.

        Raises:
            ConfigError, AdapterError: there is none.
        """
        if (source / CONFIG_FILE).is_file():
            return cls(source.resolve().name, source, rank=read_peft(source)[1].r)
        found = find_adapter(source, version)
        path, saved = found.path, load_adapter(found.path)
        name = path.parent.name if path.parent.parent.name == "checkpoints" else path.stem
        return cls(name, path, saved.version, saved.settings.rank, found.model)

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


def check_model(policies: Sequence[Policy], model: str) -> None:
    """Whether ``policies`` belong to ``model``, as far as that is known: another's adapter of the same shape would be
    played as if nothing was wrong.

    Raises:
        ConfigError: one doesn't.
    """
    for policy in policies:
        if policy.model not in (None, model):
            raise ConfigError(
                f"{policy.path} was trained on {policy.model}, and the evaluation plays {model}; compare adapters "
                "of one model, or say with --model-path that it is the same"
            )


@dataclass(frozen=True, slots=True)
class Engines:
    """What answers for the policies: one engine of the base model and all adapters, so that they are decoded in one
    batch, and one more for each policy that is all weights of a model."""

    shared: Engine
    whole: Mapping[str, Engine]

    def client_of(self, policy: Policy, chat: ChatTokenizer, max_tokens: int) -> EngineClient:
        """Lets ``policy`` answer what roles are asked; judges stay the base model."""

        async def generate(request: GenerationRequest) -> Generation:
            if request.adapter is None:
                return await self.shared.generate(request)
            if policy.name in self.whole:
                return await self.whole[policy.name].generate(request)
            return await self.shared.generate(replace(request, adapter=policy.adapter))

        return EngineClient(chat, generate, lambda: policy.version, max_tokens)

    async def load(self, policy: Policy, scale: float) -> None:
        """Load the policy's weights.

        Raises:
            AdapterError: they can't be read, or don't fit the model.
        """
        if policy.path is None:
            return
        if policy.name in self.whole:
            await self.whole[policy.name].load_adapter(load_adapter(policy.path).weights, policy.version)
            return
        weights = read_any_adapter(policy.path, AdapterShape(self.shared.adapter_shapes, scale))
        await self.shared.load_adapter(weights, policy.version, policy.name)


@contextmanager
def start_engines(config: RunConfig, policies: Sequence[Policy]) -> Iterator[Engines]:
    """Engines of the run's model for all ``policies``.

    Raises:
        ModelError: there is no such model.
    """
    model = resolve_model(config.model_path)
    rank = max([1, config.lora_rank, *(policy.rank for policy in policies)])
    lora = LoRASettings(rank, config.lora_scale)  # on all layers: what an adapter lacks is zero
    with ExitStack() as stack:

        def start(lora: LoRASettings) -> Engine:
            size = config.concurrency
            return stack.enter_context(
                Engine(model, lora=lora, max_adapters=len(policies), max_batch_size=size)
            )

        whole = [policy.name for policy in policies if policy.whole]
        yield Engines(start(lora), {name: start(LoRASettings(rank=0)) for name in whole})
