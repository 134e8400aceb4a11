"""Which engine or judge is asked, without Ray: handles whose answers the test decides on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from selfplay_ray.actors.routing import IMBALANCE, EngineRouter, JudgeRouter
from selfplay_ray.errors import InferenceError, UnavailableError
from selfplay_ray.inference.balance import RetrySettings
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


async def answered(handles: list[Handle], answer: object) -> int:
    """Which of ``handles`` is asked next; it answers."""
    async with asyncio.timeout(5):
        while True:
            for index, handle in enumerate(handles):
                if handle.asked and not handle.asked[-1].done():
                    said = handle.asked[-1]
                    said.set_exception(answer) if isinstance(answer, Exception) else said.set_result(answer)
                    return index
            await asyncio.sleep(0)


async def test_one_that_cannot_answer_is_left_alone_and_the_request_goes_elsewhere():
    engines = [Handle(), Handle(), Handle()]
    router = EngineRouter(engines, RetrySettings(first_delay=60, longest_delay=60))
    task = asyncio.create_task(router.generate(request(0)))
    first = await answered(engines, UnavailableError("it is down"))
    second = await answered(engines, "said")
    assert first != second
    assert await task == "said"
    task = asyncio.create_task(router.generate(replace(request(0), seed=1)))
    assert await answered(engines, "said again") == second  # its prompt's place, while the first rests
    assert await task == "said again"


async def test_one_that_was_left_alone_is_asked_again():
    engines = [Handle()]
    router = EngineRouter(engines, RetrySettings(first_delay=0.001, longest_delay=0.001))
    task = asyncio.create_task(router.generate(request(0)))
    for _ in range(20):
        await answered(engines, UnavailableError("it is down"))
    await answered(engines, "said")
    assert await task == "said"


async def test_when_nobody_is_well_for_too_long_the_request_fails():
    engines = [Handle(), Handle()]
    router = EngineRouter(engines, RetrySettings(deadline=0.02, first_delay=0.001, longest_delay=0.001))
    task = asyncio.create_task(router.generate(request(0)))
    while not task.done():
        for said in [engine.asked[-1] for engine in engines if engine.asked]:
            if not said.done():
                said.set_exception(UnavailableError("it is down"))
        await asyncio.sleep(0)
    with pytest.raises(
        InferenceError, match=r"^no engine could answer request r within 0\.02 s: it is down$"
    ):
        await task


async def test_what_fails_for_good_is_not_asked_again():
    engines = [Handle(), Handle()]
    task = asyncio.create_task(EngineRouter(engines).generate(request(0)))
    await answered(engines, InferenceError("no such token"))
    with pytest.raises(InferenceError, match="no such token"):
        await task
    assert sum(len(engine.asked) for engine in engines) == 1


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
