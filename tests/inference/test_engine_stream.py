"""Replies as they come, and what ends them: the same tokens either way, and logprobs of what could be drawn."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.requests import GenerationRequest, TokenChunk
from selfplay_ray.inference.sampling import SamplingRow, likeliest, sample

ASK = GenerationRequest("r", (5, 6, 7), max_tokens=10, temperature=0.8, seed=4)


async def streamed(engine: Engine, request: GenerationRequest) -> list[TokenChunk]:
    return [chunk async for chunk in engine.stream(request)]


async def test_a_streamed_reply_is_the_reply(tiny_engine: Engine) -> None:
    asked = [replace(ASK, id=f"r{seed}", seed=seed, top_logprobs=seed % 3) for seed in range(6)]
    whole = [await tiny_engine.generate(request) for request in asked]
    for generation, chunks in zip(
        whole, await asyncio.gather(*[streamed(tiny_engine, request) for request in asked]), strict=True
    ):
        assert len(chunks) == 10
        assert tuple(token for chunk in chunks for token in chunk.token_ids) == generation.token_ids
        logprobs = [value for chunk in chunks for value in chunk.logprobs]
        assert logprobs == pytest.approx(generation.logprobs, abs=1e-5)
        assert [chunk.finish_reason for chunk in chunks] == [None] * 9 + ["length"]
        assert {version for chunk in chunks for version in chunk.versions} == {0}


async def test_leaving_a_stream_frees_the_place(tiny_engine: Engine) -> None:
    async with aclosing(tiny_engine.stream(replace(ASK, max_tokens=900))) as chunks:
        await anext(chunks)
        assert tiny_engine.stats().running == 1
    await tiny_engine.generate(ASK)  # the engine has obeyed by now
    assert tiny_engine.stats().running == 0


async def test_a_stream_ends_with_the_engine(tiny: Path) -> None:
    engine = Engine(tiny)
    chunks = engine.stream(replace(ASK, max_tokens=900))
    await anext(chunks)
    engine.check_alive()
    await asyncio.to_thread(engine.close)
    with pytest.raises(InferenceError, match="was closed"):
        async for _ in chunks:
            pass
    with pytest.raises(InferenceError, match="was closed"):
        engine.check_alive()
    with pytest.raises(InferenceError, match="was closed"):
        await streamed(engine, ASK)


async def test_each_request_has_its_own_ends(tiny_engine: Engine) -> None:
    whole = await tiny_engine.generate(ASK)
    end = whole.token_ids[4]
    assert end not in whole.token_ids[:4]
    stopping = replace(ASK, id="stopping", stop_token_ids=(end,))
    unlikely = replace(stopping, id="later", min_tokens=7)
    ended, later, plain = await asyncio.gather(*map(tiny_engine.generate, (stopping, unlikely, ASK)))
    assert (ended.token_ids, ended.finish_reason) == (whole.token_ids[:5], "stop")
    assert plain.token_ids == whole.token_ids
    assert later.token_ids[:4] == whole.token_ids[:4]
    assert end not in later.token_ids[:7]
    assert len(later.token_ids) >= 7


async def test_as_many_of_the_likeliest_are_told_as_each_request_asks_for(tiny_engine: Engine) -> None:
    asked = [replace(ASK, id=str(top), top_logprobs=top) for top in (0, 1, 3)]
    none, one, three = await asyncio.gather(*map(tiny_engine.generate, asked))
    assert none.top_logprobs == ((),) * 10
    for first, best in zip(one.top_logprobs, three.top_logprobs, strict=True):
        assert first == best[:1]
        assert len(best) == 3


def test_a_banned_token_has_no_probability_and_the_others_share_its() -> None:
    # Softmax at temperature 2 of log(1), log(4), log(16), log(64): 1, 2, 4, 8; without the last 1/7, 2/7, 4/7.
    logits = mx.log(mx.array([[1.0, 4.0, 16.0, 64.0]]))
    drawn = set()
    for position in range(40):
        rows = [SamplingRow(3, 2.0, position, banned=(3, 10**9), top=2)]
        token, logprob = sample(logits, rows)
        drawn.add(token.item())
        assert logprob.item() == pytest.approx(np.log(2 ** token.item() / 7), abs=1e-5)
        best, logprobs = likeliest(logits, rows)
        assert best.tolist() == [[2, 1]]
        assert logprobs.tolist()[0] == pytest.approx(np.log([4 / 7, 2 / 7]), abs=1e-5)
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize("wrong", [{"min_tokens": 11}, {"min_tokens": -1}, {"top_logprobs": -1}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InferenceError, match="request r asks for"):
        replace(ASK, **wrong)
