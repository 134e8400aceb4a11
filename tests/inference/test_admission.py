"""Who may enter the batch, and who is told that there is no room."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from pathlib import Path

import mlx.nn as nn
import pytest

from selfplay_ray.errors import ContextLengthError, QueueFullError
from selfplay_ray.inference.adapters import Adapter
from selfplay_ray.inference.admission import KVBudget, WaitingGroups, default_kv_bytes
from selfplay_ray.inference.batch_settings import BatchSettings
from selfplay_ray.inference.decoder import Decoder
from selfplay_ray.inference.decoding import Decoding
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.kv_cache import ROOM
from selfplay_ray.inference.requests import Generation, GenerationRequest

LIVE = Adapter("live")
ONE, TWO = (1, 2, 3), (4, 5, 6)
TINY_BYTES_A_TOKEN = 2 * 2 * 2 * 16 * 4  # keys and values of two layers of two heads of 16 float32


def request(
    seed: int = 0, prompt: tuple[int, ...] = ONE, max_tokens: int = 6, priority: int = 0
) -> GenerationRequest:
    return GenerationRequest(f"r{seed}", prompt, max_tokens, 1.0, seed, priority, ignore_eos=True)


def waiting(ticket: int, prompt: tuple[int, ...], priority: int = 0) -> Decoding:
    return Decoding(ticket, request(ticket, prompt, priority=priority), LIVE, frozenset(), Future())


def tickets(groups: WaitingGroups) -> list[list[int]]:
    order = []
    while group := list(groups.first()):
        order.append([decoding.ticket for decoding in group])
        for decoding in group:
            groups.remove(decoding)
    return order


def submit(batch: Decoder, *requests: GenerationRequest) -> list[Future[Generation]]:
    futures: list[Future[Generation]] = [Future() for _ in requests]
    for one, future in zip(requests, futures, strict=True):
        batch.submit(one, future)
    return futures


def test_samples_of_one_prompt_wait_together_at_the_place_of_the_first() -> None:
    groups = WaitingGroups()
    for ticket, prompt in enumerate([ONE, TWO, ONE, TWO, ONE]):
        groups.add(waiting(ticket, prompt))
    assert len(groups) == 5
    assert tickets(groups) == [[0, 2, 4], [1, 3]]
    assert len(groups) == 0


def test_one_of_higher_priority_brings_its_group_along() -> None:
    groups = WaitingGroups()
    for ticket, (prompt, priority) in enumerate([(ONE, 0), (TWO, 0), (TWO, 3)]):
        groups.add(waiting(ticket, prompt, priority))
    assert tickets(groups) == [[2, 1], [0]]


def test_who_hangs_up_while_it_waits_is_forgotten() -> None:
    groups, leaving = WaitingGroups(), waiting(1, ONE)
    groups.add(waiting(0, ONE))
    groups.add(leaving)
    assert groups.discard(leaving.future)
    assert not groups.discard(leaving.future)
    assert tickets(groups) == [[0]]


def test_a_batch_takes_as_much_as_its_longest_row_times_its_rows() -> None:
    budget = KVBudget(capacity=10_000, per_token=4, per_row=100)
    assert budget.needed(rows=3, longest=ROOM + 1) == 3 * (100 + 4 * (2 * ROOM + 1))
    # 10000 / (100 + 4 · (10 + 64)) = 25.25 rows of up to 10 positions
    assert budget.rows(longest=10) == 25
    two = [waiting(0, ONE), waiting(1, tuple(range(ROOM)))]
    assert budget.reserved(two) == budget.needed(2, ROOM + 6)


def test_the_default_is_memory_this_machine_has() -> None:
    assert 2**26 < default_kv_bytes() < 2**46


def test_a_group_enters_at_once_and_nobody_overtakes_it(tiny_model: nn.Module) -> None:
    batch = Decoder(tiny_model, (), BatchSettings(max_batch_size=4))
    submit(batch, request(0, TWO, max_tokens=3), request(1, (7, 8), max_tokens=12))
    batch.step()
    submit(batch, *[request(seed, ONE) for seed in range(2, 6)], request(6, (9, 9)))
    seen = set()
    while batch.busy:
        batch.step()
        seen.add((batch.stats().running, batch.stats().waiting))
    # Four want to enter: not beside one or two others, but all four when these are done; then the last.
    assert seen == {(2, 5), (1, 5), (0, 5), (4, 1), (0, 1), (1, 0), (0, 0)}


def test_a_group_larger_than_the_batch_enters_as_there_is_room(tiny_model: nn.Module) -> None:
    batch = Decoder(tiny_model, (), BatchSettings(max_batch_size=4))
    futures = submit(batch, *[request(seed, max_tokens=4 + 3 * seed) for seed in range(10)])
    while batch.busy:
        batch.step()
        assert batch.stats().running in (3, 4) or batch.stats().waiting == 0  # one may just have ended
    assert [len(future.result().token_ids) for future in futures] == [4 + 3 * seed for seed in range(10)]
    assert batch.stats().prefilled_tokens == 2  # of a prompt of three, once


def test_admission_waits_for_memory_and_gives_it_back(tiny_model: nn.Module) -> None:
    room_for_two = 2 * (24 + ROOM) * TINY_BYTES_A_TOKEN
    batch = Decoder(tiny_model, (), BatchSettings(kv_cache_bytes=room_for_two))
    futures = submit(batch, *[request(seed, (seed, 5, 6, 7), max_tokens=20) for seed in range(5)])
    most = 0
    while batch.busy:
        batch.step()
        assert batch.stats().running <= 2
        assert batch.stats().kv_bytes <= batch.stats().kv_capacity_bytes
        most = max(most, batch.stats().running)
    assert most == 2
    assert all(len(future.result().token_ids) == 20 for future in futures)
    assert batch.stats().kv_bytes == batch.stats().prefix_bytes


def test_a_long_prompt_holds_nobody_up_for_more_than_its_share(tiny_model: nn.Module) -> None:
    batch = Decoder(tiny_model, (), BatchSettings(prefill_step_size=16))
    (talking,) = submit(batch, request(0, max_tokens=500))
    while batch.stats().generated_tokens == 0:
        batch.step()
    submit(batch, *[request(seed, tuple(range(seed, seed + 200)), max_tokens=1) for seed in (10, 20)])
    before, steps = batch.stats().generated_tokens, 0
    while batch.stats().running + batch.stats().waiting > 1:
        batch.step()
        steps += 1
    # Two prompts of 199 tokens share 16 a step; every step draws a token of who was talking all the while.
    assert steps >= 2 * 199 / 16
    assert batch.stats().generated_tokens - before == steps + 2
    assert not talking.done()


async def test_a_full_queue_says_so_at_once(tiny: Path) -> None:
    with Engine(tiny, max_batch_size=2, max_waiting=1) as engine:
        tasks = [asyncio.create_task(engine.generate(request(seed, max_tokens=400))) for seed in range(3)]
        while engine.stats().running < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(
            QueueFullError, match=r"request r9 found 2 running and 1 waiting.*try again later"
        ):
            await engine.generate(request(9))
        with pytest.raises(QueueFullError, match="r9"):
            await anext(engine.stream(request(9)))
        tasks[0].cancel()
        await asyncio.gather(*tasks[:1], return_exceptions=True)
        tasks.append(asyncio.create_task(engine.generate(request(4, max_tokens=2))))
        answers = await asyncio.gather(*tasks[1:])
        assert [len(answer.token_ids) for answer in answers] == [400, 400, 2]


async def test_what_never_fits_is_refused_by_name(tiny: Path) -> None:
    with Engine(tiny, kv_cache_bytes=2 * ROOM * TINY_BYTES_A_TOKEN) as engine:
        assert len((await engine.generate(request(max_tokens=ROOM - 3))).token_ids) == ROOM - 3
        with pytest.raises(
            ContextLengthError, match=r"request r0 needs 3 prompt . 62 new tokens, whose keys"
        ):
            await engine.generate(request(max_tokens=ROOM - 2))
    with Engine(tiny) as engine, pytest.raises(ContextLengthError, match="the model's context holds 1024"):
        await engine.generate(request(max_tokens=2000))


async def test_an_engine_at_rest_gives_all_its_memory_back(tiny: Path) -> None:
    with Engine(tiny, prefix_seconds=0.0) as engine:
        await asyncio.gather(*[engine.generate(request(seed, tuple(range(60)), 40)) for seed in range(4)])
        while engine.stats().kv_bytes:
            await asyncio.sleep(0.05)
        assert engine.stats().prefix_bytes == 0
