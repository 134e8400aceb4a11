"""Adapters side by side: every row is as if its adapter were alone, and whatever comes and goes touches no other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import quantize_model

from selfplay_ray.errors import AdapterError, UnknownNameError
from selfplay_ray.inference.adapters import Adapters
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.requests import LIVE, GenerationRequest
from selfplay_ray.lora import LoRASettings, attach_lora, write_adapter
from selfplay_ray.models import load_model
from selfplay_ray.types import Message

PROMPT = tuple(range(100, 120))


def noise(shapes: dict[str, tuple[int, ...]], seed: int, size: float = 0.3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def request(adapter: str | None, seed: int = 0, max_tokens: int = 8) -> GenerationRequest:
    return GenerationRequest(f"{adapter}{seed}", PROMPT, max_tokens, 1.0, seed, adapter=adapter)


@pytest.mark.parametrize("bits", [0, 4])
def test_a_mixed_batch_is_each_rows_adapter_alone(tiny: Path, bits: int) -> None:
    """Against mlx-lm's own layer for one adapter, on plain and on quantized weights."""

    def fresh() -> object:
        model, _ = load_model(tiny)
        return quantize_model(model, {}, group_size=32, bits=bits)[0] if bits else model

    model = fresh()
    adapters = Adapters(model, LoRASettings(rank=4), max_adapters=4)
    for seed, name in enumerate(["one", "two"]):
        adapters.load(name, noise(adapters.shapes, seed), version=seed)
    tokens = mx.array([[1, 2, 3]] * 4)
    names = ["two", None, "one", "two"]
    adapters.select([adapters.find(name) for name in names])
    together = model(tokens)
    for row, name in enumerate(names):
        alone = fresh()
        if name is not None:
            attach_lora(alone, LoRASettings(rank=4), seed=0)
            write_adapter(alone, noise(adapters.shapes, ["one", "two"].index(name)))
        assert mx.allclose(together[row], alone(tokens[:1])[0], atol=1e-5)
    adapters.select([adapters.base] * 4)
    assert mx.array_equal(model(tokens), fresh()(tokens))


async def test_four_policies_in_one_batch_say_what_each_says_alone(
    smollm2: Path, chat: ChatTokenizer
) -> None:
    prompt, _ = chat.encode([Message(role="user", content="Tell me a story about a dog and the sea.")])
    names = ["live", "v1", "v2", None]
    with Engine(smollm2, lora=LoRASettings()) as engine:
        for seed, name in enumerate(names[:3]):
            await engine.load_adapter(noise(dict(engine.adapter_shapes), seed, 0.05), seed + 1, str(name))
        asked = [
            replace(request(name, seed, 12), prompt_token_ids=prompt) for seed in range(2) for name in names
        ]
        alone = [await engine.generate(one) for one in asked]
        together = await asyncio.gather(*[engine.generate(one) for one in asked])
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.spans[0].version for answer in together] == [1, 2, 3, 0] * 2
    assert len({answer.token_ids for answer in together}) == 8
    for mixed, single in zip(together, alone, strict=True):
        assert mixed.logprobs == pytest.approx(single.logprobs, abs=1e-4)


async def test_loading_swapping_and_unloading_leave_the_others_alone(tiny_engine: Engine) -> None:
    shapes = dict(tiny_engine.adapter_shapes)
    undisturbed = await tiny_engine.generate(request(None, max_tokens=60))
    task = asyncio.create_task(tiny_engine.generate(request(None, max_tokens=60)))
    while tiny_engine.stats().generated_tokens < 70:
        await asyncio.sleep(0)
    for version in range(4):
        await tiny_engine.load_adapter(noise(shapes, version), version, "guest")
        await tiny_engine.generate(request("guest", max_tokens=2))
    await tiny_engine.unload_adapter("guest")
    assert await task == undisturbed
    assert tiny_engine.adapters == {LIVE: 0}


async def test_who_is_decoded_with_an_adapter_keeps_it_when_it_is_unloaded(tiny_engine: Engine) -> None:
    weights = noise(dict(tiny_engine.adapter_shapes), 3)
    await tiny_engine.load_adapter(weights, 5, "guest")
    whole = await tiny_engine.generate(request("guest", max_tokens=60))
    before = tiny_engine.stats().generated_tokens
    task = asyncio.create_task(tiny_engine.generate(request("guest", max_tokens=60)))
    while tiny_engine.stats().generated_tokens < before + 5:
        await asyncio.sleep(0)
    await tiny_engine.unload_adapter("guest")
    assert not task.done()
    with pytest.raises(UnknownNameError, match="unknown adapter 'guest'; known: live"):
        await tiny_engine.generate(request("guest"))
    await tiny_engine.load_adapter(noise(dict(tiny_engine.adapter_shapes), 4), 6, "guest")
    assert await task == whole


async def test_an_engine_takes_as_many_as_it_was_started_for(tiny: Path) -> None:
    with Engine(tiny, lora=LoRASettings(), max_adapters=2) as engine:
        shapes = dict(engine.adapter_shapes)
        for name in ("one", "two"):
            await engine.load_adapter(noise(shapes, 0), 1, name)
        with pytest.raises(
            AdapterError, match=r"no room for adapter 'three'.*one, two are loaded; unload one"
        ):
            await engine.load_adapter(noise(shapes, 0), 1, "three")
        await engine.load_adapter(noise(shapes, 1), 2, "two")  # another version of one that is there
        await engine.unload_adapter("one")
        await engine.load_adapter(noise(shapes, 0), 1, "three")
        assert engine.adapters == {LIVE: 0, "two": 2, "three": 1}


async def test_nobody_unloads_what_is_not_there(tiny_engine: Engine) -> None:
    with pytest.raises(UnknownNameError, match="unknown adapter 'nobody'"):
        await tiny_engine.unload_adapter("nobody")


async def test_an_adapter_that_overflows_spoils_no_other_row(tiny_engine: Engine) -> None:
    shapes = dict(tiny_engine.adapter_shapes)
    await tiny_engine.load_adapter(noise(shapes, 1), 1)
    alone = await tiny_engine.generate(request(LIVE))
    await tiny_engine.load_adapter(
        {name: np.full(shape, 1e37, np.float32) for name, shape in shapes.items()}, 2, "wild"
    )
    _, beside = await asyncio.gather(*[tiny_engine.generate(request(name)) for name in ("wild", LIVE)])
    assert beside.token_ids == alone.token_ids
    assert beside.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


async def test_what_is_finite_in_float64_only_is_refused(tiny_engine: Engine) -> None:
    weights = {name: np.full(shape, 1e300) for name, shape in tiny_engine.adapter_shapes.items()}
    with pytest.raises(AdapterError, match="not finite"):
        await tiny_engine.load_adapter(weights, 1)
    assert tiny_engine.policy_version == 0


async def test_the_live_policy_always_has_a_place(tiny: Path) -> None:
    with Engine(tiny, lora=LoRASettings(), max_adapters=1) as engine:
        weights = noise(dict(engine.adapter_shapes), 0)
        await engine.load_adapter(weights, 1, "guest")
        await engine.load_adapter(weights, 2)
        assert engine.adapters == {LIVE: 2, "guest": 1}
        await engine.unload_adapter(LIVE)
        assert (await engine.generate(request(LIVE))).spans[0].version == 0
