"""The methods by name, and their settings."""

from __future__ import annotations

from typing import get_args

import mlx.core as mx
import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.loss_settings import LossName, LossSettings
from selfplay_ray.training.losses import LOSSES, LossInputs, Objective, make_objective, step_weights


def test_every_name_has_a_method():
    assert set(LOSSES) == set(get_args(LossName))
    assert LossSettings().loss in LOSSES


def total(objective: Objective, ratio: float, advantage: float = 1.0) -> float:
    """The loss of one token with μ = 0.4 and π = 0.4 r."""
    behaviour = mx.log(mx.array([[0.4]]))
    inputs = LossInputs(
        behaviour + mx.log(mx.array(ratio)), behaviour, mx.array(advantage), mx.array([[True]])
    )
    return objective(inputs).total.item()


@pytest.mark.parametrize(
    ("settings", "ratio", "loss"),
    [
        (LossSettings(), 1.5, -1.28),  # DAPO's bounds
        (LossSettings(clip_high=0.4), 1.5, -1.4),
        (LossSettings(loss="dr_grpo"), 1.5, -1.2),
        (LossSettings(loss="gspo"), 1.5, -1.0004),
        # π - μ = 0.2 · 0.4 = 0.08 < 0.2: -1.2 + 1e-3 log² 1.2 = -1.2 + 1e-3 · 0.033241
        (LossSettings(loss="dppo_tv"), 1.2, -1.19996676),
        (LossSettings(loss="dppo_tv", log_ratio_coefficient=0), 1.2, -1.2),
        (LossSettings(loss="dppo_tv", clip_high=0.05, log_ratio_coefficient=0), 1.2, 0),
        # -min(r, 5) log 0.4 r: 2 · -log 0.8 = 0.446287
        (LossSettings(loss="cispo"), 2, 0.446287),
        (LossSettings(loss="reinforce"), 2, 0.223144),
        (LossSettings(loss="reinforce", truncation=1.5), 2, 0.334715),
    ],
)
def test_bounds_are_the_papers_unless_given(settings, ratio, loss):
    assert total(make_objective(settings), ratio) == pytest.approx(loss, rel=1e-5)


def test_a_loss_without_bounds_takes_none():
    with pytest.raises(ConfigError, match="reinforce bounds nothing"):
        make_objective(LossSettings(loss="reinforce", clip_low=0.1))


def test_the_normalization_is_the_papers_unless_given(record):
    records = [record("a", [1], [2, 3, 4]), record("b", [1], [5])]
    # 1/4; 1/(2·3) and 1/(2·1); 1/(2·8)
    assert step_weights(records, LossSettings()) == {"a": 1 / 4, "b": 1 / 4}
    assert step_weights(records, LossSettings(loss="gspo")) == {"a": 1 / 6, "b": 1 / 2}
    assert step_weights(records, LossSettings(loss="dr_grpo", max_tokens=8)) == {"a": 1 / 16, "b": 1 / 16}
    assert step_weights(records, LossSettings(loss="gspo", normalization="token"))["a"] == 1 / 4


def test_no_term_is_on_by_default():
    objective = make_objective(LossSettings())
    assert objective.kl is None
    assert not objective.needs_every_record
    assert make_objective(LossSettings(kl_coefficient=0.1)).needs_reference
