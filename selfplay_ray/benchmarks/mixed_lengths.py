"""`mixed_lengths`: prompts and replies of all lengths, as rollouts have them, against mlx-lm's own `batch_generate`.

There are more of them than are decoded at a time, so that others come as some end. Both sample at temperature 1.
"""

from __future__ import annotations

from selfplay_ray.benchmarks.load import MODEL, Tokens, new_tokens, request, seconds
from selfplay_ray.benchmarks.mlx_lm_batch import MLXLMBatch
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.inference.engine import Engine
from selfplay_ray.seeds import derive_rng

REQUESTS, AT_ONCE = 32, 16
FEWEST_PROMPT_TOKENS, MOST_PROMPT_TOKENS = 20, 100
FEWEST_NEW_TOKENS, MOST_NEW_TOKENS = 8, 32


def run(repeats: int) -> BenchmarkResult:
    """Seconds for all the replies, in turn."""
    plain = MLXLMBatch(MODEL, AT_ONCE)
    with Engine(MODEL, max_batch_size=AT_ONCE) as engine:
        costs = []
        for number in range(repeats + 1):  # the first pays for what is allocated and compiled once
            asked = [mixed_request(number, index) for index in range(REQUESTS)]
            ours = seconds(
                engine, [request(prompt, tokens, seed) for seed, (prompt, tokens) in enumerate(asked)]
            )
            costs.append((ours, plain.seconds(*zip(*asked, strict=True))))
    return BenchmarkResult.of_costs(
        "mixed_lengths",
        costs[1:],
        "s",
        model=MODEL,
        requests=REQUESTS,
        at_once=AT_ONCE,
        prompt_tokens=f"{FEWEST_PROMPT_TOKENS}-{MOST_PROMPT_TOKENS}",
        new_tokens=f"{FEWEST_NEW_TOKENS}-{MOST_NEW_TOKENS}",
    )


def mixed_request(repeat: int, index: int) -> tuple[Tokens, int]:
    """A prompt, and of how many tokens the reply is to be."""
    rng = derive_rng(0, "benchmark", "mixed_lengths", repeat, index)
    prompt = new_tokens(rng.randint(FEWEST_PROMPT_TOKENS, MOST_PROMPT_TOKENS), "mixed_lengths", repeat, index)
    return prompt, rng.randint(FEWEST_NEW_TOKENS, MOST_NEW_TOKENS)
