"""`throughput`: distinct prompts through the engine, against mlx-lm's own `batch_generate` on the same batch.

Both sample at temperature 1 and run the same prompts in one prefill; the engine returns logprobs and versions
besides, the baseline token ids only.
"""

from __future__ import annotations

import time

import mlx.nn as nn
from mlx_lm import batch_generate, load
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from selfplay_ray.benchmarks.load import MODEL, Tokens, new_tokens, request, seconds
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.inference.engine import Engine
from selfplay_ray.models import resolve_model

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 32, 64


def run(repeats: int) -> BenchmarkResult:
    """Seconds for all the replies, in turn."""
    model, tokenizer = load(str(resolve_model(MODEL)))[:2]
    tokenizer.eos_token_ids = ()  # replies of a fixed length, as ours
    with Engine(MODEL) as engine:
        costs = []
        for number in range(repeats + 1):  # the first pays for what is allocated and compiled once
            prompts = [new_tokens(PROMPT_TOKENS, "throughput", number, index) for index in range(PROMPTS)]
            ours = seconds(engine, [request(prompt, NEW_TOKENS, seed) for seed, prompt in enumerate(prompts)])
            costs.append((ours, _baseline_seconds(model, tokenizer, prompts)))
    return BenchmarkResult.of_costs(
        "throughput",
        costs[1:],
        "s",
        model=MODEL,
        prompts=PROMPTS,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
    )


def _baseline_seconds(model: nn.Module, tokenizer: TokenizerWrapper, prompts: list[Tokens]) -> float:
    started = time.perf_counter()
    batch_generate(
        model,
        tokenizer,
        [list(prompt) for prompt in prompts],
        max_tokens=NEW_TOKENS,
        sampler=make_sampler(temp=1.0),
        completion_batch_size=PROMPTS,
        prefill_batch_size=PROMPTS,
    )
    return time.perf_counter() - started
