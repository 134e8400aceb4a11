"""Rows that come and go: what is shared among them, and that a batch that has ended is not run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.inference.adapters import Adapters
from selfplay_ray.inference.batch import DecodeBatch, Prompts, _kinds, _shares
from selfplay_ray.inference.decoding import Decoding, to_spans
from selfplay_ray.inference.forward import CompiledForward, Forward, LayerCaches, MLXForward, forward_of
from selfplay_ray.inference.requests import GenerationRequest
from selfplay_ray.inference.sampling import SamplingRow
from selfplay_ray.types import PolicySpan

on_a_cpu = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="MLX computes on a GPU here")


def decoding(
    ticket: int, adapters: Adapters, prompt: tuple[int, ...] = (5, 6, 7), max_tokens: int = 3, top: int = 0
) -> Decoding:
    request = GenerationRequest(f"r{ticket}", prompt, max_tokens, 1.0, 100 + ticket, top_logprobs=top)
    return Decoding(ticket, request, adapters.base, frozenset(), Future())


@given(st.lists(st.integers(1, 99), min_size=1), st.integers(1, 300))
def test_what_may_be_run_is_shared(wanted: list[int], most: int) -> None:
    shares = _shares(wanted, most)
    assert all(1 <= share <= want for share, want in zip(shares, wanted, strict=True))
    assert sum(shares) <= max(most, len(wanted))
    if any(share < want for share, want in zip(shares, wanted, strict=True)):
        assert sum(shares) >= most  # nothing is left over
        cut = [share for share, want in zip(shares, wanted, strict=True) if share < want]
        assert max(cut) - min(cut) <= 1
        assert max(shares) - min(cut) <= 1  # nobody has more than who wants more


def test_what_is_padded_is_bounded(tiny_model: nn.Module, adapters: Adapters) -> None:
    class Counting(MLXForward):
        def prefill(self, tokens: Sequence[Sequence[int]], caches: LayerCaches) -> None:
            assert len(tokens) * max(map(len, tokens)) <= 2 * 16
            super().prefill(tokens, caches)

    forward = Counting(tiny_model)
    prompts = Prompts(forward, adapters)
    rows = [decoding(number, adapters, prompt=(7,) * length) for number, length in enumerate([60, 2, 3, 3])]
    prompts.enter([(row, forward.new_caches()) for row in rows])
    finished = []
    while prompts:
        done = [row for row, _ in prompts.run(16)]
        prompts.leave(done)
        finished += done
    assert finished == [*rows[1:], rows[0]]


@pytest.fixture(params=["numpy", "mlx"])
def forward(request: pytest.FixtureRequest, tiny_model: nn.Module) -> Iterator[Forward]:
    made = forward_of(tiny_model)
    if isinstance(made, CompiledForward) != (request.param == "numpy"):
        made.close()
        if request.param == "numpy":
            pytest.skip("MLX computes on a GPU here")
        made = MLXForward(tiny_model)
    yield made
    made.close()


@pytest.fixture
def adapters(tiny_model: nn.Module) -> Adapters:
    return Adapters(tiny_model, None, max_adapters=0)


def test_those_of_a_kind_are_alike_until_something_was_drawn(adapters: Adapters) -> None:
    a, b = (5, 6, 7), (5, 6, 8)
    rows = [decoding(number, adapters, prompt) for number, prompt in enumerate([a, a, b, a, b, b])]
    rows[1].shares = rows[4].shares = False
    assert _kinds(rows) == ([0, 1, 2, 4], [0, 1, 2, 0, 3, 2])
    for row in rows:
        row.drawn = 1
    assert _kinds(rows) == (list(range(6)), list(range(6)))


def test_how_the_next_token_is_drawn(adapters: Adapters) -> None:
    one = decoding(4, adapters, top=2)
    assert one.next_draw() == SamplingRow(104, 1.0, 0, (), 2)
    one.drawn = 7
    assert one.next_draw() == SamplingRow(104, 1.0, 7, (), 2)


def replies(forward: Forward, adapters: Adapters, *rows: Decoding) -> tuple[dict[int, list[int]], int]:
    """What each says by its ticket, and how often the model was run for it."""
    prompts, batch = Prompts(forward, adapters), DecodeBatch(forward, adapters)
    prompts.enter([(row, forward.new_caches()) for row in rows])
    said: dict[int, list[int]] = {row.ticket: [] for row in rows}
    steps = 0
    while prompts or batch:
        batch.enter_from(prompts, prompts.run(4))
        before = sum(row.held for row in rows)
        for row, drawn in batch.step():
            said[row.ticket].append(drawn.token)
            if row.take(drawn) is not None:
                assert len(row.tokens_held) == row.held
                batch.leave([row])
        steps += sum(row.held for row in rows) > before
    assert batch.nbytes == prompts.nbytes == 0
    return said, steps


def test_prompts_and_replies_of_all_lengths_are_as_alone(forward: Forward, adapters: Adapters) -> None:
    shapes = [((5, 6, 7), 3), (tuple(range(20, 40)), 5), ((9, 9), 1), (tuple(range(70, 79)), 4)]

    def made(number: int) -> Decoding:
        return decoding(number, adapters, *shapes[number])

    together, _ = replies(forward, adapters, *map(made, range(4)))
    for number, (_, max_tokens) in enumerate(shapes):
        alone, steps = replies(forward, adapters, made(number))
        assert together[number] == alone[number]
        assert len(alone[number]) == max_tokens == steps  # the last token isn't run


def test_who_end_their_prompts_together_take_their_keys_and_values_along(
    forward: Forward, adapters: Adapters
) -> None:
    rows = [decoding(number, adapters) for number in range(3)]
    batch, prompts = DecodeBatch(forward, adapters), Prompts(forward, adapters)
    prompts.enter([(row, forward.new_caches()) for row in rows])
    caches = prompts._caches
    batch.enter_from(prompts, prompts.run(99))
    assert batch._caches is caches
    assert (len(prompts), prompts.nbytes) == (0, 0)


def test_who_has_left_is_told_nothing(forward: Forward, adapters: Adapters) -> None:
    stays, leaves = decoding(0, adapters), decoding(1, adapters)
    batch, prompts = DecodeBatch(forward, adapters), Prompts(forward, adapters)
    prompts.enter([(row, forward.new_caches()) for row in (leaves, stays)])
    batch.enter_from(prompts, prompts.run(99))
    told = [row for row, _ in batch.step()]
    batch.leave([leaves])
    told += [row for _ in range(stays.request.max_tokens) for row, _ in batch.step()]
    assert told.count(leaves) == (0 if forward.lazy else 1)  # what was drawn and not told of is forgotten
    assert told.count(stays) == stays.request.max_tokens


def test_versions_become_spans() -> None:
    assert to_spans([3, 3, 4, 4, 4, 6]) == (PolicySpan(0, 2, 3), PolicySpan(2, 5, 4), PolicySpan(5, 6, 6))
    assert to_spans([]) == ()
