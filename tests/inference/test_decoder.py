"""The batch, step by step in one thread: what is prefilled, what is forked, who goes first."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.nn as nn
import numpy as np
import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.inference.adapters import Adapters
from selfplay_ray.inference.batch_settings import BatchSettings
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.decoder import MOST_RESTARTS, PATIENCE, UNDISTURBED, Decoder
from selfplay_ray.inference.decoding import WORTH_KEEPING
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.lora import LoRASettings
from selfplay_ray.models import load_model
from selfplay_ray.types import Message

EOS = {2}
PROMPT = tuple(range(100, 130))

TRIPLES = ((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))


def decoder(model: nn.Module, *, batch: int = 32, step: int = 512, fork: bool = True) -> Decoder:
    return Decoder(model, EOS, BatchSettings(max_batch_size=batch, prefill_step_size=step, fork=fork))


def trainable(folder: Path, *, step: int = 512) -> Decoder:
    """A decoder whose policy can change: its model isn't shared with other tests."""
    model = load_model(folder)[0]
    settings = BatchSettings(prefill_step_size=step)
    return Decoder(model, EOS, settings, Adapters(model, LoRASettings(), max_adapters=4))


def weights(batch: Decoder, seed: int = 0) -> dict[str, np.ndarray]:
    """Such as change what the model says."""
    rng = np.random.default_rng(seed)
    shapes = batch.adapters.shapes.items()
    return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes}


def request(
    seed: int = 0,
    prompt: tuple[int, ...] = PROMPT,
    max_tokens: int = 6,
    temperature: float = 1.0,
    priority: int = 0,
) -> GenerationRequest:
    return GenerationRequest(f"r{seed}", prompt, max_tokens, temperature, seed, priority)


def submit(batch: Decoder, *requests: GenerationRequest) -> list[Future[Generation]]:
    futures: list[Future[Generation]] = [Future() for _ in requests]
    for one, future in zip(requests, futures, strict=True):
        batch.submit(one, future)
    return futures


def run(batch: Decoder, *requests: GenerationRequest) -> list[Generation]:
    futures = submit(batch, *requests)
    while batch.busy:
        batch.step()
    return [future.result(timeout=0) for future in futures]


def tokens(generations: list[Generation]) -> list[tuple[int, ...]]:
    return [generation.token_ids for generation in generations]


def test_a_group_runs_its_prompt_once(tiny_model: nn.Module) -> None:
    forked, plain = decoder(tiny_model), decoder(tiny_model, fork=False)
    group = [request(seed) for seed in range(8)]
    assert tokens(run(forked, *group)) == tokens(run(plain, *group))
    assert forked.stats().prefilled_tokens == 29  # all but the last, with which decoding begins
    assert plain.stats().prefilled_tokens == 8 * 29
    assert forked.stats().prompt_tokens == plain.stats().prompt_tokens == 8 * 30


def test_forked_is_plain_on_the_real_model(real_model: nn.Module, chat: ChatTokenizer) -> None:
    prompt, _ = chat.encode([Message(role="user", content="Name a river and the sea it flows into.")])
    group = [request(seed, prompt, max_tokens=8) for seed in range(6)]
    plain = run(decoder(real_model, fork=False), *group)
    assert tokens(run(decoder(real_model), *group)) == tokens(plain)
    assert len(set(tokens(plain))) > 1


def test_a_sibling_that_comes_later_forks_too(tiny_model: nn.Module) -> None:
    batch = decoder(tiny_model)
    run(batch, request(1))
    run(batch, request(2))
    assert batch.stats().prefilled_tokens == 29


def test_a_later_turn_runs_only_what_is_new(tiny_model: nn.Module) -> None:
    batch = decoder(tiny_model)
    (first,) = run(batch, request(1, max_tokens=WORTH_KEEPING))
    second = request(2, prompt=(*PROMPT, *first.token_ids, 7, 8, 9, 10))
    continued = run(batch, second)
    assert batch.stats().prefilled_tokens == 29 + 4  # the last of the reply has not been run
    assert tokens(continued) == tokens(run(decoder(tiny_model), second))


def test_a_new_policy_begins_with_keys_of_its_own(tiny: Path) -> None:
    batch = trainable(tiny)
    run(batch, request(1))
    batch.load_adapter("live", weights(batch), version=1)
    run(batch, request(2))
    assert batch.stats().prefilled_tokens == 29 + 29


def test_a_prompt_begun_before_a_swap_is_begun_again(tiny: Path) -> None:
    batch = trainable(tiny, step=2)  # 29 tokens take four steps
    before = submit(batch, request(1), request(2))
    batch.step()
    batch.load_adapter("live", weights(batch), version=1)
    assert batch.stats().restarts == 2
    while batch.busy:
        batch.step()
    fresh = trainable(tiny)
    fresh.load_adapter("live", weights(batch), version=1)
    begun_again = [future.result() for future in before]
    assert tokens(begun_again) == tokens(run(fresh, request(1), request(2)))
    assert {span.version for generation in begun_again for span in generation.spans} == {1}


def test_weights_that_change_all_the_time_do_not_keep_a_prompt_from_its_end(tiny: Path) -> None:
    batch = trainable(tiny, step=1)  # 8 steps
    (future,) = submit(batch, request(1))
    for version in range(1, 40):
        batch.step()
        if not future.done():
            batch.load_adapter("live", weights(batch), version)
    assert future.done()
    assert batch.stats().restarts == MOST_RESTARTS


def test_who_has_drawn_a_token_goes_on_through_a_swap(tiny: Path) -> None:
    batch = trainable(tiny)
    (future,) = submit(batch, request(1))
    batch.step()
    assert batch.stats().generated_tokens <= 1  # the first token may be drawn and not yet told of
    batch.load_adapter("live", weights(batch), version=1)
    while batch.busy:
        batch.step()
    assert [span.version for span in future.result().spans] == [0, 1]
    assert batch.stats().restarts == 0


def test_prompts_of_all_lengths_together_are_as_alone(tiny_model: nn.Module) -> None:
    mixed = [request(n, prompt=tuple(range(50, 51 + 9 * n)), temperature=0.5 * n) for n in range(4)]
    together = run(decoder(tiny_model, step=8), *mixed)
    assert tokens(together) == [run(decoder(tiny_model), one)[0].token_ids for one in mixed]


def test_prompts_wait_for_company_while_requests_wait_for_a_place(tiny_model: nn.Module) -> None:
    batch = decoder(tiny_model, batch=4)
    submit(batch, request(0, max_tokens=30))
    short = [submit(batch, *(request(n, prompt=(50, n, 51), max_tokens=1) for n in some)) for some in TRIPLES]
    batch.step()
    assert all(future.done() for future in short[0])
    for waiting in short[1:-1]:
        for _ in range(PATIENCE):
            assert not any(future.done() for future in waiting)
            batch.step()
        batch.step()
        assert all(future.done() for future in waiting)
    assert batch.stats().waiting == 3
    batch.step()  # nobody else will come
    assert all(future.done() for future in short[-1])


def test_who_disturbs_nobody_runs_more_of_its_prompt_at_once(tiny_model: nn.Module) -> None:
    batch = decoder(tiny_model, step=2)
    (future,) = submit(batch, request(1, max_tokens=1))
    steps = 0
    while not future.done():
        batch.step()
        steps += 1
    assert steps == -(-29 // (2 * UNDISTURBED))


def test_what_is_kept_outlives_who_has_run_it(tiny_model: nn.Module) -> None:
    batch = decoder(tiny_model, step=10)
    one, other = request(1), request(2, prompt=tuple(range(200, 350)))
    run(batch, one, other)  # whose memory the other has gone on with
    assert tokens(run(batch, request(3))) == tokens(run(decoder(tiny_model), request(3)))


def test_a_policy_that_was_unloaded_leaves_nothing_behind(tiny: Path) -> None:
    batch = trainable(tiny)
    batch.load_adapter("one", weights(batch), version=1)
    long = GenerationRequest("r", PROMPT, WORTH_KEEPING, 1.0, 1, adapter="one", ignore_eos=True)
    (future,) = submit(batch, long)
    batch.step()
    batch.unload_adapter("one")
    while not future.done():
        batch.step()
    assert len(future.result().token_ids) == WORTH_KEEPING
    assert batch.stats().kv_bytes == 0


def test_keys_and_values_stay_within_their_bytes(tiny_model: nn.Module) -> None:
    """Though those who come are long, and those who have left were."""
    rows, length = 8, 300
    needed = decoder(tiny_model).budget.needed(rows, length)
    settings = BatchSettings(prefill_step_size=150, kv_cache_bytes=needed, prefix_cache_bytes=0)
    batch = Decoder(tiny_model, EOS, settings)
    ends = [3] * 4 + [60] * 4 + [20] * 4
    futures = submit(
        batch, *(request(n, prompt=(50 + n,) * (length - end), max_tokens=end) for n, end in enumerate(ends))
    )
    while batch.busy:
        batch.step()
        assert batch.stats().kv_bytes <= needed
    assert all(future.done() for future in futures)


def test_the_highest_priority_goes_first_then_who_came_first(tiny_model: nn.Module) -> None:
    batch = decoder(tiny_model, batch=1)
    finished: list[int] = []
    for seed, priority in [(0, 0), (1, 0), (2, 5), (3, 1)]:
        (future,) = submit(batch, request(seed, priority=priority))
        future.add_done_callback(partial(lambda seed, _: finished.append(seed), seed))
    while batch.busy:
        batch.step()
        assert batch.stats().running <= 1
    assert finished == [2, 3, 0, 1]


def test_the_stop_token_is_part_of_what_was_said(tiny_model: nn.Module) -> None:
    (long,) = run(decoder(tiny_model), request(4, max_tokens=6))
    third = long.token_ids[2]
    stopping = Decoder(tiny_model, {third}, BatchSettings())
    (stopped,) = run(stopping, request(4, max_tokens=6))
    assert stopped.token_ids == long.token_ids[: long.token_ids.index(third) + 1]
    assert stopped.finish_reason == "stop"
    assert long.finish_reason == "length"


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
@pytest.mark.parametrize("cancelled", [0, 1])
def test_a_group_does_without_one_of_its_own(tiny_model: nn.Module, steps: int, cancelled: int) -> None:
    """Whoever leaves, leader or follower, waiting, in prefill or decoding: the others are as if it stayed."""
    group = [request(seed) for seed in range(3)]
    expected = tokens(run(decoder(tiny_model), *group))
    batch = decoder(tiny_model, step=2)
    futures = submit(batch, *group)
    for _ in range(steps):
        batch.step()
    futures[cancelled].cancel()
    batch.cancel(futures[cancelled])
    assert batch.stats().running + batch.stats().waiting == 2
    while batch.busy:
        batch.step()
    del futures[cancelled], expected[cancelled]
    assert tokens([future.result(timeout=0) for future in futures]) == expected


def test_closing_gives_up_what_is_unfinished(tiny_model: nn.Module) -> None:
    batch = decoder(tiny_model, batch=1)
    futures = submit(batch, request(1), request(2))
    batch.step()
    error = RuntimeError("closed")
    batch.close(error)
    assert [future.exception(timeout=0) for future in futures] == [error, error]
    assert not batch.busy


def test_a_batch_of_0_is_refused() -> None:
    settings = BatchSettings()
    with pytest.raises(ConfigError, match="batch size"):
        replace(settings, max_batch_size=0)
    with pytest.raises(ConfigError, match="prefill step"):
        replace(settings, prefill_step_size=0)
    with pytest.raises(ConfigError, match="0 or more that wait"):
        replace(settings, max_waiting=-1)
