"""`throughput`: distinct prompts through the engine, against mlx-lm's own `batch_generate` on the same batch.

Both sample at temperature 1 and run the same prompts in one prefill; the engine returns logprobs and versions
besides, the baseline token ids only.
"""

from __future__ import annotations

from selfplay_ray.benchmarks.load import MODEL, new_tokens, request, seconds
from selfplay_ray.benchmarks.mlx_lm_batch import MLXLMBatch
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.inference.engine import Engine

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, 32, 64


def run(repeats: int) -> BenchmarkResult:
    """Seconds for all the replies, in turn."""
    plain = MLXLMBatch(MODEL, PROMPTS)
    with Engine(MODEL) as engine:
        costs = []
        for number in range(repeats + 1):  # the first pays for what is allocated and compiled once
            prompts = [new_tokens(PROMPT_TOKENS, "throughput", number, index) for index in range(PROMPTS)]
            ours = seconds(engine, [request(prompt, NEW_TOKENS, seed) for seed, prompt in enumerate(prompts)])
            costs.append((ours, plain.seconds(prompts, [NEW_TOKENS] * PROMPTS)))
    return BenchmarkResult.of_costs(
        "throughput",
        costs[1:],
        "s",
        model=MODEL,
        prompts=PROMPTS,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
    )
