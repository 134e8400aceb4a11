"""Whole runs on a real cluster with real engines and learners: what they leave, in which order, and whether again."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import games
import numpy as np
import pytest
from processes import actors_left
from ray import cloudpickle

from selfplay_ray.actors.run import train
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.episode import EpisodeState
from selfplay_ray.errors import ConfigError, ModelError, TrainingError
from selfplay_ray.lora import load_adapter
from selfplay_ray.replay import ReplayBuffer
from selfplay_ray.rubric import Rubric
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.runlog.rollouts import RolloutRow, TreeRow, read_rollouts
from selfplay_ray.scheduling.coordinator_state import decode_state, encode_state
from selfplay_ray.tasks.proposer_solver import ProposerSolverArena
from selfplay_ray.training.checkpoint_folder import checkpoint_path, checkpoint_versions
from selfplay_ray.training.trainer import Trainer, TrainerSettings
from selfplay_ray.types import EpisodeRequest, Rollout

pytestmark = pytest.mark.usefixtures("ray_cluster")
cloudpickle.register_pickle_by_value(
    sys.modules[__name__]
)  # the actors' processes don't find the modules of tests

Config = Callable[..., RunConfig]


def rollouts(config: RunConfig) -> list[TreeRow]:
    return list(read_rollouts(config.output_dir / config.name / "rollouts.jsonl"))


def below(row: RolloutRow) -> Iterator[RolloutRow]:
    yield row
    for child in row.children:
        yield from below(child)


def said(config: RunConfig) -> list[tuple[str, str, dict[str, float | None], dict[str, float | None]]]:
    return [
        (row.id, step.text, row.rewards, row.advantages)
        for tree in rollouts(config)
        for row in below(tree.tree)
        for step in row.steps
    ]


def adapters(config: RunConfig) -> dict[str, dict[str, np.ndarray]]:
    folder = config.output_dir / config.name / "adapters"
    return {path.name: dict(load_adapter(path).weights) for path in sorted(folder.iterdir())}


def test_a_run_leaves_its_folder_and_the_same_run_leaves_the_same_numbers(
    short_run: Config, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = short_run(num_steps=3, batch_size=4, max_staleness=0, checkpoint_every=2, wandb_project="tests")
    history = train(games.SpeakArena(artifacts=[1]), config)
    folder = config.output_dir / "run"
    check_folder(folder, config, history)
    check_steps(history)
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))

    again = config.model_copy(update={"name": "again", "wandb_project": None})
    train(games.SpeakArena(artifacts=[1]), again)
    assert not (config.output_dir / "again" / "wandb").exists()
    assert said(again) == said(config)
    for one, other in zip(adapters(again).values(), adapters(config).values(), strict=True):
        for name, weights in one.items():
            np.testing.assert_array_equal(weights, other[name])

    with pytest.raises(ConfigError, match="run holds a run already"):
        train(games.SpeakArena(), config)


def check_folder(folder: Path, config: RunConfig, history: list[StepMetrics]) -> None:
    assert load_config(RunConfig, ["--config", str(folder / "config.toml")], "test") == config
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [metrics.flat() for metrics in history]
    trees = rollouts(config)
    assert [tree.batch for tree in trees] == [0] * 4 + [1] * 4 + [2] * 4
    assert [tree.tree.id for tree in trees] == [f"b{b:06d}.{i}" for b in range(3) for i in range(4)]
    assert all(len(tree.tree.children) == 2 for tree in trees)
    # in step: what batch n says is said by version n, to the last token
    versions = {
        (tree.batch, span.version)
        for tree in trees
        for row in below(tree.tree)
        for step in row.steps
        for span in step.spans
    }
    assert versions == {(0, 0), (1, 1), (2, 2)}
    assert list(adapters(config)) == [f"v00000{version}.safetensors" for version in (1, 2, 3)]
    check_checkpoint(folder, config)
    with ReplayBuffer(folder / "replay.sqlite") as journal:
        counts = journal.counts()
    assert (counts.queued, counts.leased, counts.acked_roots) == (0, 0, 12)


def check_checkpoint(folder: Path, config: RunConfig) -> None:
    trainer = Trainer(config.model_path, TrainerSettings.from_config(config))
    assert checkpoint_versions(folder / "checkpoints") == [2, 3]
    assert trainer.load(checkpoint_path(folder / "checkpoints", 3))["roots"] == 12
    assert trainer.version == 3
    last = load_adapter(folder / "adapters" / "v000003.safetensors")
    assert (last.version, last.weights.keys()) == (3, trainer.adapter().keys())
    for name, weights in trainer.adapter().items():
        np.testing.assert_array_equal(last.weights[name], weights)


def check_steps(history: list[StepMetrics]) -> None:
    assert [(metrics.step, metrics.version) for metrics in history] == [(1, 1), (2, 2), (3, 3)]
    for metrics in history:
        assert (metrics.finished, metrics.failed, metrics.rewards["Speaker"].count) == (12, 0, 12)
        assert (metrics.staleness_max, metrics.dropped_stale) == (0, 0)
        assert metrics.tokens_per_second > 0
        assert metrics.values["train/tokens_trained"] > 0
        assert metrics.values["train/grad_norm"] > 0


def test_generation_overlaps_training_and_lags_one_version_at_most(short_run: Config):
    config = short_run(num_steps=4, batch_size=4, max_staleness=1, rollout_workers=2)
    history = train(games.SpeakArena(), config)
    assert len(history) == 4
    assert (
        max(metrics.staleness_max for metrics in history) == 1
    )  # a batch was played while one was trained on
    assert sum(metrics.dropped_stale for metrics in history) == 0
    assert sorted(tree.tree.id for tree in rollouts(config)) == [
        f"b{b:06d}.{i}" for b in range(4) for i in range(4)
    ]


class LateSpeak(games.Speak):
    """Seconds to wait are its artifact."""

    async def rollout(self, arena: Arena, artifact: float, state: EpisodeState) -> EpisodeState:
        await asyncio.sleep(artifact)
        return await super().rollout(arena, 0, state)


class InGroups(games.SpeakArena):
    """Four roots: a group of three, and one that is late."""

    def get_batch(self) -> list[EpisodeRequest]:
        three, one = EpisodeRequest("speak", 0.0, group="three"), EpisodeRequest("speak", 1.0, group="one")
        return [three, three, three, one]


def test_a_run_of_groups_of_different_sizes_takes_all_its_steps(short_run: Config):
    """The groups of three come first, two of them for a batch of four: 6, 9, …; without keeping account of
    that the roots would be used up a step too early."""
    config = short_run(num_steps=4, batch_size=4, max_staleness=1)
    history = train(InGroups(LateSpeak()), config)
    assert [metrics.step for metrics in history] == [1, 2, 3, 4]
    assert sum(metrics.finished for metrics in history) == 16
    assert checkpoint_versions(config.output_dir / "run" / "checkpoints") == [4]  # which the last step leaves


def now_and_then(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Differs from sample to sample in every third batch alone."""
    said = sum(rollout.steps[0].completion_token_ids) % 11 / 10
    return {"Speaker": said if int(rollout.id[1:7]) % 3 == 2 else 0.5}


class NowAndThen(games.Speak):
    rubric = Rubric([now_and_then])


def test_a_step_waits_for_something_to_train_on(short_run: Config):
    config = short_run(num_steps=2, batch_size=3, max_staleness=1, min_trainable=1, max_extra_batches=2)
    history = train(games.SpeakArena(NowAndThen()), config)
    assert [metrics.values["train/extra_batches"] for metrics in history] == [2, 2]
    assert [metrics.values["train/records"] for metrics in history] == [3, 3]
    assert sorted(tree.tree.id for tree in rollouts(config)) == [
        f"b{b:06d}.{i}" for b in range(6) for i in range(3)
    ]


def test_a_run_that_goes_on_knows_what_its_steps_were_given_though_no_group_came_after(short_run: Config):
    """As where it was killed with every batch of the step in the journal, before the arena put another group."""
    task = games.SpeakArena(NowAndThen())
    settings = {"batch_size": 3, "max_staleness": 1, "min_trainable": 1, "max_extra_batches": 2}
    config = short_run(num_steps=1, **settings)
    train(task, config)
    folder = config.output_dir / config.name
    database = sqlite3.connect(folder / "replay.sqlite")
    (content,) = database.execute("SELECT content FROM state").fetchone()
    forgotten = encode_state(replace(decode_state(content)[0], extra={}))
    with database:
        database.execute("UPDATE state SET content = ?", (forgotten,))
    database.close()
    history = train(task, short_run(num_steps=2, resume=folder, **settings))
    assert [metrics.values["train/extra_batches"] for metrics in history] == [2, 2]
    assert [metrics.finished for metrics in history] == [9, 9]


def test_where_nothing_can_be_trained_on_the_run_says_why(short_run: Config):
    config = short_run(num_steps=2, batch_size=3, min_trainable=1, max_extra_batches=1)
    with pytest.raises(
        TrainingError, match=r"step 1: 6 root episodes left nothing .* Speaker 0.5 \(± 0, 6\)"
    ):
        train(games.SpeakArena(NowAndThen()), config)


async def ask(rollout: Rollout, arena: Arena) -> dict[str, float]:
    verdict = await arena.call_model("Is it good?", max_tokens=3)
    rollout.extras["verdict"] = verdict.text
    return {"Speaker": float(len(verdict.text))}


class Judged(games.Speak):
    rubric = Rubric([ask])


def test_a_deep_tree_needs_no_more_than_one_worker_and_one_sequence_at_a_time(short_run: Config):
    """Four levels below the root, judged by the judge pool, one after the other."""
    config = short_run(num_steps=1, batch_size=1, concurrency=1, judges=1, error_budget=0)
    (metrics,) = train(games.SpeakArena(Judged(), artifacts=[4]), config)
    (tree,) = rollouts(config)
    played = list(below(tree.tree))
    assert len(played) == 31
    assert all(isinstance(row.extras["verdict"], str) for row in played)
    assert [step.role_id for row in played for step in row.steps] == ["Speaker"] * 31
    assert metrics.values["train/records"] + metrics.values["train/skipped_zero_advantage"] == 31


def test_on_the_real_model_the_ratio_at_lag_0_is_1(short_run: Config):
    """And the proposer's questions are answered by solvers, its children."""
    config = short_run(model_path="smollm2-135m", num_steps=2, max_staleness=0, lora_rank=8)
    arena = ProposerSolverArena(2, n_solver_rollouts=4)
    arena.episodes["solve"].rubric = Rubric([games.variety])  # so few are often equally right: no gradient
    history = train(arena, config, "proposer_solver")
    for metrics in history:
        assert metrics.values["train/tokens_trained"] > 0
        assert metrics.values["train/ratio_lag0"] < 1e-4
        assert metrics.rewards["Solver"].count in {4, 8}
        assert metrics.rewards["Proposer"].count == 2


def test_a_model_that_cannot_be_read_is_one_sentence_and_leaves_no_actor(
    short_run: Config, tiny: Path, tmp_path: Path
):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 1000 if path.suffix == ".safetensors" else None])
    config = short_run(model_path=str(broken))
    with pytest.raises(ModelError, match=f"^the model in {broken} can't be loaded: .*$"):
        train(games.SpeakArena(), config)
    assert actors_left() == []
