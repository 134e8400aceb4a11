"""The comparison with vLLM, with our own server in vLLM's place: both ways must ask for the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from server_running import running_server

from selfplay_ray.benchmarks import against_vllm
from selfplay_ray.benchmarks.against_vllm import InProcess, OverHTTP, Sizes, compare
from selfplay_ray.benchmarks.load import new_tokens
from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.balance import RetrySettings
from selfplay_ray.inference.endpoints import Endpoints

SMALL = Sizes(
    prompts=2,
    prompt_tokens=5,
    new_tokens=3,
    mixed_requests=2,
    samples=2,
    group_prompt_tokens=5,
    group_new_tokens=3,
    conversations=2,
    turns=2,
    first_tokens=5,
    turn_tokens=2,
    reply_tokens=3,
)


async def test_both_are_asked_for_the_same(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(against_vllm, "REST", 0)  # nothing is measured
    with running_server(tiny) as running:
        endpoints = Endpoints([f"{running.url}/v1"], retry=RetrySettings(attempts=1))
        name = await against_vllm.base_model(endpoints)
        ours, theirs = InProcess(running.engine, None), OverHTTP(endpoints, name)
        prompts = [new_tokens(6, "test", number) for number in range(3)]
        replies = await ours.sample(prompts, 2, 4)
        assert [len(reply) for reply in replies] == [4] * 6
        assert await theirs.sample(prompts, 2, 4) == replies
        for workload in against_vllm.WORKLOADS:
            result = await compare(workload, ours, theirs, SMALL, repeats=1)
            assert result.name == f"against_vllm/{workload.__name__}"
            assert result.ratio == pytest.approx(result.baseline / result.value)
        async with against_vllm.one_adapter(running.engine, endpoints) as adapter:
            assert adapter == "against-vllm@v1"
            learned = await OverHTTP(endpoints, adapter).sample(prompts, 1, 4)
            assert learned != replies[::2]
        with pytest.raises(InferenceError, match="answered 404"):
            await OverHTTP(endpoints, adapter).sample(prompts, 1, 4)
        await endpoints.aclose()
