"""What the training step's benchmarks have in common: records, a trainer, and how a cost is taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx
import numpy as np

from selfplay_ray.benchmarks.load import MODEL, ORDINARY_TOKENS, Tokens
from selfplay_ray.benchmarks.noise import noisy_weights
from selfplay_ray.lora import read_adapter, write_adapter
from selfplay_ray.training.trainer import Trainer, TrainerSettings
from selfplay_ray.types import PolicySpan, TrainingRecord

VOCABULARY = 49152

Outcome = TypeVar("Outcome")


def noisy_trainer() -> Trainer:
    """With noise for an adapter: with B at zero half of its gradient would be zero as well."""
    trainer = Trainer(MODEL, TrainerSettings())
    shapes = {name: weight.shape for name, weight in read_adapter(trainer.model).items()}
    write_adapter(trainer.model, noisy_weights(shapes, seed=1))
    return trainer


def random_tokens(rng: np.random.Generator, count: int) -> Tokens:
    """Ordinary tokens at random, because only their number matters to a cost.

    Among the rarest are some that a full forward pass too, padded by a few tokens, gives other logprobs in the
    third decimal: what is rounding there would hide what isn't.
    """
    return tuple(rng.integers(ORDINARY_TOKENS.start, ORDINARY_TOKENS.stop, count).tolist())


def make_record(
    id: str, prompt: Sequence[int], completion: Sequence[int], advantage: float
) -> TrainingRecord:
    """A record of whose tokens each had a logprob of -10."""
    length = len(completion)
    return TrainingRecord(
        id=id,
        role_id="Solver",
        rollout_id=id,
        episode_type="solve",
        prompt_token_ids=tuple(prompt),
        completion_token_ids=tuple(completion),
        logprobs=(-10.0,) * length,
        action_mask=(True,) * length,
        spans=(PolicySpan(0, length, 0),),
        temperature=1.0,
        reward=0.0,
        advantage=advantage,
    )


def measure(compute: Callable[[], Outcome]) -> tuple[float, float, Outcome]:
    """CPU seconds of the whole process, peak memory of MLX in GB, and what was computed."""
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.process_time()
    outcome = compute()
    return time.process_time() - start, mx.get_peak_memory() / 1e9, outcome
