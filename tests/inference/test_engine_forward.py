"""Which forward pass a model gets, and that the draw after either is the same."""

from __future__ import annotations

import threading
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from selfplay_ray.inference.forward import CompiledForward, Forward, MLXForward, forward_of
from selfplay_ray.inference.sampling import SamplingRow
from selfplay_ray.models import load_model

on_a_cpu = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="MLX computes on a GPU here")
ROWS = [SamplingRow(seed, 1.0, 0, top=3) for seed in range(4)]


def batch(forward: Forward, rows: int) -> list[object]:
    return forward.join([], [forward.new_caches() for _ in range(rows)])


@on_a_cpu
def test_on_a_cpu_numpy_runs_what_it_knows_and_mlx_the_rest(tiny: Path) -> None:
    model = load_model(tiny)[0]
    ours = forward_of(model)
    assert isinstance(ours, CompiledForward)
    ours.close()
    model.set_dtype(mx.bfloat16)
    assert isinstance(forward_of(model), MLXForward)


def test_on_a_gpu_mlx_runs_everything(tiny_model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert isinstance(forward_of(tiny_model), MLXForward)


@on_a_cpu
def test_both_draw_the_same(tiny_model: nn.Module) -> None:
    mine, theirs = forward_of(tiny_model), MLXForward(tiny_model)
    assert mine.kv_bytes() == theirs.kv_bytes()
    tokens = np.random.default_rng(0).integers(0, 49152, (4, 20)).tolist()
    drawn = []
    for one in (mine, theirs):
        caches = batch(one, 3)
        one.prefill([tokens[0], tokens[1][:9], tokens[2][:1]], caches)  # of all lengths
        late = batch(one, 1)
        one.prefill([tokens[3][:4]], late)
        caches = one.join(caches, [[cache.extract(0) for cache in late]])
        logits = one.decode(mx.array([1, 2, 3, 4]), caches)
        drawn.append([np.array(part) for part in (*logits.draw(ROWS), *logits.likeliest([1, 3], ROWS[:2]))])
    (tokens_, logprobs, best, most), wanted = drawn
    assert (tokens_ == wanted[0]).all()
    assert (best == wanted[2]).all()
    assert np.abs(logprobs - wanted[1]).max() < 2e-5
    assert np.abs(most - wanted[3]).max() < 2e-5
    mine.close()


@on_a_cpu
def test_rows_that_are_alike_are_run_once_and_go_on_as_if_all_had_been(tiny_model: nn.Module) -> None:
    ours = forward_of(tiny_model)
    head = [[5, 6, 7], [5, 6, 7], [8, 9, 10], [5, 6, 7]]
    shared, plain = batch(ours, 4), batch(ours, 4)
    for caches in (shared, plain):
        ours.prefill(head, caches)
    last, following = mx.array([3, 3, 4, 3]), mx.array([1, 2, 3, 4])
    assert ours.shares(shared)
    assert_equal(
        ours.decode_one_of_each(last, shared, [0, 2], [0, 0, 1, 0]).draw(ROWS),
        ours.decode(last, plain).draw(ROWS),
    )
    assert_equal(ours.decode(following, shared).draw(ROWS), ours.decode(following, plain).draw(ROWS))
    ours.close()


def assert_equal(ones: tuple[mx.array, ...], others: tuple[mx.array, ...]) -> None:
    assert all(mx.array_equal(one, other) for one, other in zip(ones, others, strict=True))


@on_a_cpu
def test_closed_its_threads_end(tiny_model: nn.Module) -> None:
    before = set(threading.enumerate())
    ours = forward_of(tiny_model)
    threads = set(threading.enumerate()) - before
    ours.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
