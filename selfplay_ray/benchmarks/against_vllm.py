"""Our engine against a real vLLM, of the same model, on the same cores, in the same run:

    OPENBLAS_NUM_THREADS=1 python -m selfplay_ray.benchmarks.against_vllm http://127.0.0.1:8199/v1

It is none of `selfplay bench`'s, because it needs a vLLM beside it: of smollm2-135m in float32, with as many
threads (OMP_NUM_THREADS). In each repeat both get the same new prompts, as tokens, one after the other; every reply
has its full length, and comes with the logprob of each token. Both sample from the base model, for which vLLM is
fastest without --enable-lora; with --adapter from an adapter on it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import openai

from selfplay_ray.benchmarks import conversation_kv, group_fork, mixed_lengths, throughput
from selfplay_ray.benchmarks.load import MODEL, new_tokens
from selfplay_ray.benchmarks.noise import noisy_weights
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.benchmarks.samplers import InProcess, OverHTTP, Sampler
from selfplay_ray.command import run_command
from selfplay_ray.errors import ConfigError
from selfplay_ray.inference.adapter_names import versioned_name
from selfplay_ray.inference.balance import RetrySettings
from selfplay_ray.inference.endpoints import Endpoint, Endpoints
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.peft import save_peft
from selfplay_ray.inference.requests import LIVE
from selfplay_ray.lora import LoRASettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is asked for. The defaults are those of the benchmarks of the same kind."""

    prompts: int = throughput.PROMPTS
    prompt_tokens: int = throughput.PROMPT_TOKENS
    new_tokens: int = throughput.NEW_TOKENS
    mixed_requests: int = 96  # three times as many as either decodes at a time
    samples: int = group_fork.SAMPLES
    group_prompt_tokens: int = group_fork.PROMPT_TOKENS
    group_new_tokens: int = group_fork.NEW_TOKENS
    conversations: int = conversation_kv.CONVERSATIONS
    turns: int = conversation_kv.TURNS
    first_tokens: int = conversation_kv.FIRST_TOKENS
    turn_tokens: int = conversation_kv.TURN_TOKENS
    reply_tokens: int = conversation_kv.REPLY_TOKENS


REST = 2.0
"""Seconds before each measurement: the other side's threads may spin for a while after their last step."""

FULL = Sizes()
QUICK = Sizes(
    prompts=4,
    new_tokens=4,
    mixed_requests=4,
    samples=4,
    group_new_tokens=4,
    conversations=2,
    turns=2,
    reply_tokens=4,
)


Workload = Callable[[Sampler, Sizes, int], Awaitable[object]]


async def distinct_prompts(sampler: Sampler, sizes: Sizes, repeat: int) -> None:
    prompts = [new_tokens(sizes.prompt_tokens, "distinct", repeat, i) for i in range(sizes.prompts)]
    await sampler.sample(prompts, 1, sizes.new_tokens)


async def mixed(sampler: Sampler, sizes: Sizes, repeat: int) -> None:
    """Prompts and replies of all lengths, a request for each."""
    asked = [mixed_lengths.mixed_request(repeat, index) for index in range(sizes.mixed_requests)]
    await asyncio.gather(*[sampler.sample([prompt], 1, tokens) for prompt, tokens in asked])


async def group(sampler: Sampler, sizes: Sizes, repeat: int) -> None:
    """All the samples of one prompt in one request, as `n`."""
    prompt = new_tokens(sizes.group_prompt_tokens, "group", repeat)
    await sampler.sample([prompt], sizes.samples, sizes.group_new_tokens)


async def group_as_requests(sampler: Sampler, sizes: Sizes, repeat: int) -> None:
    """The same, a request for each."""
    prompt = new_tokens(sizes.group_prompt_tokens, "group_as_requests", repeat)
    await sampler.sample([prompt] * sizes.samples, 1, sizes.group_new_tokens)


async def conversations(sampler: Sampler, sizes: Sizes, repeat: int) -> None:
    """Of several turns, held at the same time."""
    await conversation_kv.converse(
        sampler,
        repeat,
        conversations=sizes.conversations,
        turns=sizes.turns,
        first_tokens=sizes.first_tokens,
        turn_tokens=sizes.turn_tokens,
        reply_tokens=sizes.reply_tokens,
    )


WORKLOADS: tuple[Workload, ...] = (distinct_prompts, mixed, group, group_as_requests, conversations)


async def compare(
    workload: Workload, ours: Sampler, theirs: Sampler, sizes: Sizes, repeats: int
) -> BenchmarkResult:
    """Seconds for ``workload``, ours and vLLM's in turn, who begins changing from one repeat to the next."""
    samplers, costs = {"ours": ours, "theirs": theirs}, []
    for repeat in range(repeats + 1):
        order = sorted(samplers, reverse=bool(repeat % 2))
        seconds = {who: await _seconds(workload, samplers[who], sizes, repeat) for who in order}
        costs.append((seconds["ours"], seconds["theirs"]))
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    detail = {"model": MODEL, "blas_threads": threads, **asdict(sizes)}
    name = getattr(workload, "__name__", "workload")
    # The first repeat pays for what is allocated once.
    return BenchmarkResult.of_costs(f"against_vllm/{name}", costs[1:], "s", **detail)


async def _seconds(workload: Workload, sampler: Sampler, sizes: Sizes, repeat: int) -> float:
    await asyncio.sleep(REST)
    started = time.perf_counter()
    await workload(sampler, sizes, repeat)
    return time.perf_counter() - started


async def base_model(endpoints: Endpoints) -> str:
    """What it is called there."""

    async def ask(endpoint: Endpoint, timeout: openai.Timeout) -> str:
        return (await endpoint.client.models.list(timeout=timeout)).data[0].id

    return await endpoints.ask(ask)


@asynccontextmanager
async def one_adapter(engine: Engine, endpoints: Endpoints) -> AsyncIterator[str]:
    """Both have the same adapter meanwhile: the engine as its live one, vLLM under the name this gives."""
    weights, name = noisy_weights(engine.adapter_shapes, seed=0), versioned_name("against-vllm", 1)
    await engine.load_adapter(weights, version=1)

    async def tell(path: str, body: dict[str, str]) -> None:
        async def ask(endpoint: Endpoint, timeout: openai.Timeout) -> str:
            return await endpoint.client.post(path, cast_to=str, body=body, options={"timeout": timeout})

        await endpoints.ask(ask)

    with tempfile.TemporaryDirectory() as folder:
        save_peft(Path(folder) / name, weights, LoRASettings().scale, MODEL)
        await tell("/load_lora_adapter", {"lora_name": name, "lora_path": str(Path(folder) / name)})
        try:
            yield name
        finally:
            await tell("/unload_lora_adapter", {"lora_name": name})


@asynccontextmanager
async def samplers(url: str, *, adapter: bool) -> AsyncIterator[tuple[Sampler, Sampler]]:
    """Ours and vLLM's."""
    async with AsyncExitStack() as stack:
        endpoints = Endpoints([url], retry=RetrySettings(attempts=1))
        stack.push_async_callback(endpoints.aclose)
        name = await base_model(endpoints)
        engine = stack.enter_context(Engine(MODEL, lora=LoRASettings() if adapter else None))
        if adapter:
            name = await stack.enter_async_context(one_adapter(engine, endpoints))
        yield InProcess(engine, LIVE if adapter else None), OverHTTP(endpoints, name)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m selfplay_ray.benchmarks.against_vllm")
    parser.add_argument("url", help="vLLM's address up to /v1.")
    parser.add_argument("--repeats", type=int, default=3, help="Measurements of each (default: 3).")
    parser.add_argument(
        "--adapter", action="store_true", help="Sample from an adapter, not from the base model."
    )
    parser.add_argument("--quick", action="store_true", help="Ask for little, to see whether it works.")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        raise ConfigError(f"--repeats {options.repeats} is not possible: it must be at least 1")
    asyncio.run(_print_all(options))
    return 0


async def _print_all(options: argparse.Namespace) -> None:
    sizes = QUICK if options.quick else FULL
    async with samplers(options.url, adapter=options.adapter) as (ours, theirs):
        for workload in WORKLOADS:
            result = await compare(workload, ours, theirs, sizes, options.repeats)
            sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run_command(main))
