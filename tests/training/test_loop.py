"""The loop in one process: an engine, an arena and a trainer, taking turns."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_tiny_model

from selfplay_ray.arena import Arena
from selfplay_ray.episode import EpisodeState, SingleTurnEpisode
from selfplay_ray.errors import ConfigError, ErrorBudgetExceeded, TrainingError
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.lora import LoRASettings
from selfplay_ray.rubric import Rubric
from selfplay_ray.runlog.evaluations import evaluated
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.training.health import TrainMetrics
from selfplay_ray.training.loop import EvaluationSettings, simple_training_loop
from selfplay_ray.training.trainer import Trainer, TrainerSettings
from selfplay_ray.types import Completion, EpisodeRequest, GenerateResult, Role, Rollout, TrainingRecord


def variety(rollout: Rollout, arena: Arena) -> dict[str, float]:
    return {step.role_id: sum(step.completion_token_ids) % 11 / 10 for step in rollout.steps}


class Speak(SingleTurnEpisode):
    rubric = Rubric([variety])

    def get_initial_role(self, artifact: object, state: EpisodeState) -> str:
        return "Speaker"

    def get_initial_prompt(self, arena: Arena, artifact: object, state: EpisodeState) -> str:
        if artifact == "fails":
            raise ValueError("the dice fell off the table")
        return "Say something."


class SpeakArena(Arena):
    artifact: object = None
    events: list[str]

    def get_batch(self) -> list[EpisodeRequest]:
        return [EpisodeRequest("speak", self.artifact)] * 8

    async def on_train_start(self) -> None:
        self.events = ["start"]

    async def on_train_end(self) -> None:
        self.events.append("end")


@dataclass
class Recording:
    """A publisher that remembers which versions it passed on."""

    engine: Engine
    versions: list[int] = field(default_factory=list)

    async def load_adapter(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        self.versions.append(version)
        await self.engine.load_adapter(weights, version)


def arena_on(engine: Engine) -> SpeakArena:
    arena = SpeakArena(EngineClient.for_engine(engine))
    arena.add_role(Role("Speaker", max_tokens=4))
    arena.add_episode("speak", Speak())
    return arena


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("loop") / "model")


async def test_it_plays_trains_and_publishes_in_turns(model: Path):
    settings = TrainerSettings(lora=LoRASettings(rank=2))
    steps: list[StepMetrics] = []
    with Engine(model, lora=settings.lora) as engine:
        arena, publisher = arena_on(engine), Recording(engine)
        trainer = Trainer(model, settings)
        history = await simple_training_loop(arena, trainer, 2, publisher, steps.append)
        assert engine.policy_version == 2
    assert history == steps
    assert publisher.versions == [0, 1, 2]
    assert arena.events == ["start", "end"]
    for number, metrics in enumerate(history, 1):
        assert (metrics.step, metrics.version, metrics.finished, metrics.failed) == (number, number, 8, 0)
        assert metrics.rewards["Speaker"].count == 8
        assert metrics.staleness_max == 0
        assert metrics.values["train/ratio_lag0"] < 1e-4
        assert metrics.tokens_per_second > 0
        assert metrics.values["train/grad_norm"] > 0


class Still:
    """A trainer that keeps the policy as it is."""

    version = 0

    def adapter(self) -> Mapping[str, np.ndarray]:
        return {}

    def train_step(self, records: Sequence[object]) -> TrainMetrics:
        raise AssertionError("nothing was played")


class Nowhere:
    """A publisher to nobody."""

    async def load_adapter(self, weights: Mapping[str, np.ndarray], version: int) -> None: ...


class Listening(Still):
    """A trainer that keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[Sequence[TrainingRecord]] = []

    def train_step(self, records: Sequence[TrainingRecord]) -> TrainMetrics:
        self.batches.append(records)
        unknown = dict.fromkeys((field.name for field in fields(TrainMetrics)), None)
        return TrainMetrics(**{**unknown, "records": len(records)})


class LuckyArena(SpeakArena):
    """All its rewards are equal, but for those of every third batch."""

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        lucky = self.batch % 3 == 2
        for index, result in enumerate(results):
            result.rewards["Speaker"] = float(lucky and index < 2)
        self.batch += 1

    batch = 0


async def test_a_step_with_nothing_to_train_on_plays_on():
    def arena() -> Arena:
        lucky = LuckyArena(MockInferenceClient(lambda _: "well"))
        lucky.add_role(Role("Speaker"))
        lucky.add_episode("speak", Speak())
        return lucky

    trainer = Listening()
    history = await simple_training_loop(arena(), trainer, 2, Nowhere())
    assert [len(batch) for batch in trainer.batches] == [3 * 8, 3 * 8]
    assert [step.values["train/extra_batches"] for step in history] == [2, 2]
    trainer = Listening()
    history = await simple_training_loop(arena(), trainer, 3, Nowhere(), min_trainable=0)
    assert [len(batch) for batch in trainer.batches] == [8, 8, 8]
    with pytest.raises(
        TrainingError, match=r"^step 1: 16 root episodes left nothing to train on: .* Speaker 0 "
    ):
        await simple_training_loop(arena(), Listening(), 1, Nowhere(), max_extra_batches=1)
    trainer = Listening()
    await simple_training_loop(arena(), trainer, 1, Nowhere(), min_trainable=100, max_extra_batches=4)
    assert [len(batch) for batch in trainer.batches] == [5 * 8]  # less than was wanted, and something


async def test_evaluations_are_of_the_same_episodes_and_change_no_training(model: Path):
    async def trained(
        evaluation: EvaluationSettings | None,
    ) -> tuple[list[StepMetrics], Mapping[str, np.ndarray]]:
        settings = TrainerSettings(lora=LoRASettings(rank=2))
        with Engine(model, lora=settings.lora) as engine:
            arena, trainer = arena_on(engine), Trainer(model, settings)
            history = await simple_training_loop(arena, trainer, 3, evaluation=evaluation)
        return history, trainer.adapter()

    history, adapter = await trained(EvaluationSettings(every=2, episodes=8, greedy=False))
    plain, without = await trained(None)
    assert [metrics.step for metrics in history] == [0, 1, 2, 3]
    assert [step for step, metrics in enumerate(history) if evaluated(metrics.values)] == [0, 2, 3]
    assert history[0].values["eval/rollouts"] == 8.0
    assert dict(history[0].rewards) == {}
    assert [metrics.rewards for metrics in history[1:]] == [metrics.rewards for metrics in plain]
    for name, weights in adapter.items():
        np.testing.assert_array_equal(weights, without[name])


async def test_it_stops_when_too_many_episodes_fail(model: Path):
    with Engine(model) as engine:
        arena = arena_on(engine)
        arena.artifact = "fails"
        with pytest.raises(
            ErrorBudgetExceeded, match=r"(?s)3 of 3 episodes of type 'speak' failed, .* the dice fell off"
        ):
            await simple_training_loop(arena, Still(), 1, Nowhere())


async def test_a_client_that_takes_no_weights_needs_a_publisher_beside_it():
    class Frozen:
        async def complete(self, call: object) -> Completion:
            raise AssertionError("nothing was to be played")

        def get_policy_version(self) -> int:
            return 0

    with pytest.raises(
        ConfigError, match=r"Frozen takes no new weights, .* give simple_training_loop a publisher"
    ):
        await simple_training_loop(SpeakArena(Frozen()), Still(), 1)
