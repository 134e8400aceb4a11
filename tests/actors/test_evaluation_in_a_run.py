"""Evaluations within a run on a real cluster: before, between and after; marked, and without a trace in training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import games
import numpy as np
import pytest

from selfplay_ray.actors.run import train
from selfplay_ray.config import RunConfig
from selfplay_ray.lora import load_adapter
from selfplay_ray.replay import ReplayBuffer
from selfplay_ray.runlog.evaluations import evaluated
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.runlog.rollouts import TreeRow, read_rollouts

pytestmark = pytest.mark.usefixtures("ray_cluster")

Config = Callable[..., RunConfig]


def trees(folder: Path, *, evaluation: bool) -> list[TreeRow]:
    return [row for row in read_rollouts(folder / "rollouts.jsonl") if row.evaluation == evaluation]


def test_a_run_with_evaluations_trains_as_one_without(short_run: Config, capsys: pytest.CaptureFixture[str]):
    config = short_run(num_steps=3, max_staleness=0, eval_every=2, eval_episodes=4, name="evaluated")
    history = train(games.SpeakArena(artifacts=[1]), config)
    plain = config.model_copy(update={"name": "plain", "eval_every": 0, "best_metric": "reward/Speeker"})
    train(games.SpeakArena(artifacts=[1]), plain)
    folder, other = config.output_dir / "evaluated", config.output_dir / "plain"
    check_numbers(folder, history)
    check_rollouts(folder)
    check_the_same_training(folder, other)
    shown = capsys.readouterr().out
    assert "step 0/3  eval Speaker 0." in shown
    assert "evaluation                step 0                step 3" in shown
    assert shown.count("warning: no step has a metric named reward/Speeker") == 1


def check_numbers(folder: Path, history: list[StepMetrics]) -> None:
    assert [metrics.step for metrics in history] == [0, 1, 2, 3]
    rewards = [evaluated(metrics.values) for metrics in history]
    assert [sorted(roles) for roles in rewards] == [["Speaker"], [], ["Speaker"], ["Speaker"]]
    for roles in filter(None, rewards):
        assert roles["Speaker"].low <= roles["Speaker"].mean <= roles["Speaker"].high
    assert history[0].values["eval/rollouts"] == 4 * 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [metrics.flat() for metrics in history]


def check_rollouts(folder: Path) -> None:
    played = trees(folder, evaluation=True)
    assert [(row.batch, row.tree.id) for row in played] == [
        (version, f"eval.{index}") for version in (0, 2, 3) for index in range(4)
    ]
    rows = [row for tree in played for row in (tree.tree, *tree.tree.children)]
    assert len(rows) == 3 * 4 * 3
    assert not any(row.is_trainable for row in rows)
    steps = [
        (tree.batch, step)
        for tree in played
        for row in (tree.tree, *tree.tree.children)
        for step in row.steps
    ]
    assert {step.temperature for _, step in steps} == {0.0}
    assert all(span.version == version for version, step in steps for span in step.spans)
    with ReplayBuffer(folder / "replay.sqlite") as journal:
        assert journal.counts().acked_roots == 3 * 2


def check_the_same_training(folder: Path, other: Path) -> None:
    trained, alone = trees(folder, evaluation=False), trees(other, evaluation=False)
    assert [row.tree.steps for row in trained] == [row.tree.steps for row in alone]
    for path in sorted((folder / "adapters").iterdir()):
        ours, theirs = load_adapter(path).weights, load_adapter(other / "adapters" / path.name).weights
        for name, weights in ours.items():
            np.testing.assert_array_equal(weights, theirs[name])
