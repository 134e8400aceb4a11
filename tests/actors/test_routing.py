"""Which engine or judge is asked, without Ray: handles whose answers the test decides on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from selfplay_ray.actors.routing import IMBALANCE, EngineRouter, JudgeRouter
from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.requests import GenerationRequest
from selfplay_ray.types import ModelCall


class Handle:
    """As an actor's handle; answers when told to."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Any]] = []
        self.generate = self.complete = SimpleNamespace(remote=self.ask)

    def ask(self, what: object) -> asyncio.Future[Any]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]


def request(prompt: int) -> GenerationRequest:
    return GenerationRequest(id="r", prompt_token_ids=(prompt, 1), max_tokens=4, temperature=1.0, seed=0)


CALL = ModelCall(messages=(), role_id=None, temperature=1.0, max_tokens=None, seed=0)


async def test_samples_of_one_prompt_go_to_one_engine_until_it_is_far_busier():
    engines = [Handle(), Handle()]
    router = EngineRouter(engines)
    tasks = []
    for _ in range(IMBALANCE + 3):
        tasks.append(asyncio.create_task(router.generate(request(0))))
        await asyncio.sleep(0)
    # the preferred one may be IMBALANCE calls ahead: with 0 there, it takes IMBALANCE + 1, then they alternate
    assert sorted(len(engine.asked) for engine in engines) == [1, IMBALANCE + 2]
    for future in engines[0].asked + engines[1].asked:
        future.set_result("said")
    assert await asyncio.gather(*tasks) == ["said"] * (IMBALANCE + 3)


async def test_different_prompts_are_spread():
    engines = [Handle(), Handle()]
    router = EngineRouter(engines)
    tasks = [asyncio.create_task(router.generate(request(prompt))) for prompt in range(40)]
    await asyncio.sleep(0)
    assert min(len(engine.asked) for engine in engines) >= 40 // 2 - IMBALANCE
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_judge_with_the_fewest_calls_is_next_also_after_one_that_failed():
    judges = [Handle(), Handle()]
    router = JudgeRouter(judges)
    first, second = (asyncio.create_task(router.complete(CALL)) for _ in range(2))
    await asyncio.sleep(0)
    assert [len(judge.asked) for judge in judges] == [1, 1]
    judges[1].asked[0].set_exception(InferenceError("no verdict"))
    with pytest.raises(InferenceError, match="no verdict"):
        await second
    third = asyncio.create_task(router.complete(CALL))
    await asyncio.sleep(0)
    assert [len(judge.asked) for judge in judges] == [1, 2]
    for judge in judges:
        judge.asked[-1].set_result("yes")
    assert await asyncio.gather(first, third) == ["yes", "yes"]
    assert router.get_policy_version() == 0  # judges are frozen
