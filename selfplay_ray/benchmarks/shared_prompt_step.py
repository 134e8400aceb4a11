"""What a training step costs when a group's prompt is run once, against the prompt repeated for every sample.

CPU time is compared, which a busy machine disturbs less than wall time.
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
from selfplay_ray.types import TrainingRecord

GROUP, PROMPT, COMPLETION = 16, 96, 32


def run(repeats: int) -> BenchmarkResult:
    """CPU seconds for the gradient of one group of 16 × (96 + 32) tokens on SmolLM2-135M, after a warm-up."""
    trainer = noisy_trainer()
    records = group()
    plan = plan_step(records, token_budget=GROUP * (PROMPT + COMPLETION), vocabulary=VOCABULARY)

    def shared() -> dict[str, mx.array]:
        return step_gradient(
            trainer.model, plan.batches, StepLoss(trainer.objective), trainer.forward
        ).gradients

    def repeated() -> dict[str, mx.array]:
        return whole_sequences_gradient(trainer.model, [records], trainer.objective)

    exact = whole_sequences_gradient(trainer.model, [records], trainer.objective, exact_cross_entropy)
    difference = relative_difference(shared(), exact)  # and a warm-up
    measured = [(measure(shared), measure(repeated)) for _ in range(repeats)]
    return BenchmarkResult.of_costs(
        "shared_prompt_step",
        [(ours[0], theirs[0]) for ours, theirs in measured],
        "CPU s",
        model=MODEL,
        samples=GROUP,
        prompt_tokens=PROMPT,
        completion_tokens=COMPLETION,
        tokens_run=plan.tokens_run,
        gradient_difference=difference,
        peak_gb=max(ours[1] for ours, _ in measured),
        baseline_peak_gb=max(theirs[1] for _, theirs in measured),
    )


def group() -> list[TrainingRecord]:
    """Sixteen samples of one prompt."""
    rng = np.random.default_rng(0)
    prompt = random_tokens(rng, PROMPT)
    return [
        make_record(f"sample-{index:02}", prompt, random_tokens(rng, COMPLETION), float(rng.normal()))
        for index in range(GROUP)
    ]
