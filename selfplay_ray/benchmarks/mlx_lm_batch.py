"""What the engine is measured against: mlx-lm's own `batch_generate`, which tells the token ids only."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mlx_lm import batch_generate, load
from mlx_lm.sample_utils import make_sampler

from selfplay_ray.benchmarks.load import Tokens
from selfplay_ray.models import resolve_model


class MLXLMBatch:
    """Samples at temperature 1, ``size`` sequences at a time."""

    def __init__(self, model: str, size: int) -> None:
        self._model, self._tokenizer = load(str(resolve_model(model)))[:2]
        self._tokenizer.eos_token_ids = ()  # replies of a fixed length, as ours
        self._size = size

    def seconds(self, prompts: Sequence[Tokens], new_tokens: Sequence[int]) -> float:
        """How long it takes for ``new_tokens`` of them to each of ``prompts``, all given at once."""
        started = time.perf_counter()
        batch_generate(
            self._model,
            self._tokenizer,
            [list(prompt) for prompt in prompts],
            max_tokens=list(new_tokens),
            sampler=make_sampler(temp=1.0),
            completion_batch_size=self._size,
            prefill_batch_size=self._size,
        )
        return time.perf_counter() - started
