"""What a training step costs when a group's prompt is run once, against the prompt repeated for every sample.

The baseline is what trainers commonly do, mlx-lm's own among them: every sample is a whole sequence, every
position has its logits, and the prompt's are masked out of the loss. That both compute the same gradient is
for the tests to show; what is compared is CPU time, which a busy machine disturbs less than wall time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mlx import nn

from selfplay_ray.benchmarks.noise import noisy_weights
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.lora import read_adapter, write_adapter
from selfplay_ray.training.batching import MicroBatch, plan_step
from selfplay_ray.training.gradient import StepGradient, step_gradient
from selfplay_ray.training.trainer import Trainer, TrainerSettings
from selfplay_ray.types import PolicySpan, TrainingRecord

MODEL, VOCABULARY = "smollm2-135m", 49152
GROUP, PROMPT, COMPLETION = 16, 96, 32


def run(repeats: int) -> BenchmarkResult:
    """CPU seconds for the gradient of one group of 16 × (96 + 32) tokens on SmolLM2-135M, after a warm-up."""
    trainer = Trainer(MODEL, TrainerSettings())
    _leave_zero(trainer)
    batches = plan_step(_group(), token_budget=GROUP * (PROMPT + COMPLETION), vocabulary=VOCABULARY).batches

    def shared() -> StepGradient:
        return step_gradient(trainer.model, batches, trainer.loss, trainer.forward)

    def repeated() -> StepGradient:
        return step_gradient(trainer.model, batches, trainer.loss, whole_sequences)

    shared(), repeated()  # warm-up
    measured = [(_measure(shared), _measure(repeated)) for _ in range(repeats)]
    costs = [(ours, theirs) for (ours, _), (theirs, _) in measured]
    return BenchmarkResult.of_costs(
        "shared_prompt_step",
        costs,
        "CPU s",
        model=MODEL,
        samples=GROUP,
        prompt_tokens=PROMPT,
        completion_tokens=COMPLETION,
        peak_gb=max(peak for (_, peak), _ in measured),
        baseline_peak_gb=max(peak for _, (_, peak) in measured),
    )


def whole_sequences(model: nn.Module, batch: MicroBatch) -> mx.array:
    """The baseline: the prompt repeated for every row, logits and log-softmax at every position."""
    rows, prefix = batch.inputs.shape[0], batch.prefix
    tokens = np.concatenate([np.broadcast_to(prefix, (rows, prefix.size)), batch.inputs], axis=1)
    targets = np.concatenate([tokens[:, 1 : prefix.size + 1], batch.targets], axis=1)
    losses: mx.array = nn.losses.cross_entropy(model(mx.array(tokens)), mx.array(targets))
    return -losses[:, prefix.size :]


def _group() -> list[TrainingRecord]:
    """Sixteen samples of one prompt; tokens at random, because only their number matters here."""
    rng = np.random.default_rng(0)
    prompt = tuple(rng.integers(0, VOCABULARY, PROMPT).tolist())
    return [
        TrainingRecord(
            id=f"sample-{index:02}",
            role_id="Solver",
            rollout_id=f"sample-{index:02}",
            episode_type="solve",
            prompt_token_ids=prompt,
            completion_token_ids=tuple(rng.integers(0, VOCABULARY, COMPLETION).tolist()),
            logprobs=(-10.0,) * COMPLETION,
            action_mask=(True,) * COMPLETION,
            spans=(PolicySpan(0, COMPLETION, 0),),
            temperature=1.0,
            reward=0.0,
            advantage=float(rng.normal()),
        )
        for index in range(GROUP)
    ]


def _leave_zero(trainer: Trainer) -> None:
    """Give the adapter noise for weights: with B at zero half of its gradient would be zero as well."""
    shapes = {name: weight.shape for name, weight in read_adapter(trainer.model).items()}
    write_adapter(trainer.model, noisy_weights(shapes, seed=1))


def _measure(compute: Callable[[], StepGradient]) -> tuple[float, float]:
    """CPU seconds of the whole process, and peak memory of MLX in GB."""
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.process_time()
    compute()
    return time.process_time() - start, mx.get_peak_memory() / 1e9
