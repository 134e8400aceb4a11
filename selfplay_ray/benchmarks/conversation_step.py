"""What a training step on debates costs when what was said is run once, against all of it repeated for each turn.

Every turn is a record whose prompt is the transcript so far. Either way a debate is a micro-batch; but the baseline
runs its turns one after the other, so that its peak of memory, weights included, is that of its longest few.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from selfplay_ray.benchmarks.load import MODEL
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.benchmarks.training_load import (
    VOCABULARY,
    make_record,
    measure,
    noisy_trainer,
    random_tokens,
)
from selfplay_ray.benchmarks.whole_sequences import (
    exact_cross_entropy,
    relative_difference,
    whole_sequences_gradient,
)
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.gradient import StepLoss, step_gradient
from selfplay_ray.training.trainer import Trainer
from selfplay_ray.types import TrainingRecord

DEBATES, TURNS = 8, 6
MOTION, REPLY, BETWEEN = 48, 24, 8
DEBATE = MOTION + TURNS * (REPLY + BETWEEN)


def run(repeats: int) -> BenchmarkResult:
    """CPU seconds for the gradient of eight debates of six turns on SmolLM2-135M, after a warm-up."""
    trainer = noisy_trainer()
    debates = [debate(number) for number in range(DEBATES)]
    records = [record for turns in debates for record in turns]
    plan = plan_step(records, DEBATE, VOCABULARY)

    def once() -> dict[str, mx.array]:
        return step_gradient(
            trainer.model, plan.batches, StepLoss(trainer.objective), trainer.forward
        ).gradients

    def repeated() -> dict[str, mx.array]:
        return whole_sequences_gradient(trainer.model, debates, trainer.objective)

    difference = _difference(trainer, debates[0])  # and a warm-up
    measured = [(measure(once), measure(repeated)) for _ in range(repeats)]
    return BenchmarkResult.of_costs(
        "conversation_step",
        [(ours[0], theirs[0]) for ours, theirs in measured],
        "CPU s",
        model=MODEL,
        debates=DEBATES,
        turns=TURNS,
        first_tokens=MOTION,
        reply_tokens=REPLY,
        tokens_between=BETWEEN,
        distinct_tokens=plan.distinct_tokens,
        tokens_run=plan.tokens_run,
        baseline_tokens=sum(len(record.input_ids) - 1 for record in records),
        gradient_difference=difference,
        peak_gb=max(ours[1] for ours, _ in measured),
        baseline_peak_gb=max(theirs[1] for _, theirs in measured),
    )


def debate(number: int) -> list[TrainingRecord]:
    """Six turns; each is asked with all that was said before it, and a few tokens more."""
    rng = np.random.default_rng(number)
    told = random_tokens(rng, MOTION)
    turns = []
    for turn in range(TURNS):
        reply = random_tokens(rng, REPLY)
        turns.append(make_record(f"debate-{number}/{turn}", told, reply, float(rng.normal())))
        told += reply + random_tokens(rng, BETWEEN)
    return turns


def _difference(trainer: Trainer, turns: list[TrainingRecord]) -> float:
    plan = plan_step(turns, DEBATE, VOCABULARY)
    ours = step_gradient(trainer.model, plan.batches, StepLoss(trainer.objective), trainer.forward).gradients
    theirs = whole_sequences_gradient(trainer.model, [turns], trainer.objective, exact_cross_entropy)
    return relative_difference(ours, theirs)
