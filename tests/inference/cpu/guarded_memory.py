"""The compiled forward pass, with nothing mapped behind the weights, adapters, keys and values: one number read beyond
them ends this process. ``guarded_memory.py KIND``, of those in test_llama."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import ctypes
import mmap
import sys

import mlx.nn as nn
import numpy as np
from test_llama import KINDS, empty, made, texts

from selfplay_ray.inference.adapters import Adapters
from selfplay_ray.inference.cpu.cores import Cores
from selfplay_ray.inference.cpu.linears import Linears
from selfplay_ray.inference.cpu.llama import CompiledLlama
from selfplay_ray.inference.cpu.projections import BIAS, IN, OUT, RANK, ROWS, WEIGHT, A, B
from selfplay_ray.lora import LoRASettings

LIBC = ctypes.CDLL(None, use_errno=True)


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy of float32 whose last number is the last before a page that may not be read."""
    whole = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, whole + mmap.PAGESIZE)
    beyond = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + whole
    if LIBC.mprotect(ctypes.c_void_p(beyond), ctypes.c_size_t(mmap.PAGESIZE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(memory, np.float32, array.size, whole - array.nbytes).reshape(array.shape)
    copy[:] = array
    return copy


def guard(linears: Linears, kept: list[np.ndarray]) -> None:
    """Have all factors lie so, as long as they are ``kept``."""
    for row in linears.table:
        shapes = {
            WEIGHT: (row[ROWS], row[IN]),
            BIAS: (1, row[OUT]),
            A: (row[IN], row[RANK]),
            B: (row[RANK], row[ROWS]),
        }
        for place, shape in shapes.items():
            if row[place]:
                there = ctypes.cast(int(row[place]), ctypes.POINTER(ctypes.c_float))
                kept.append(guarded(np.ctypeslib.as_array(there, shape)))
                row[place] = kept[-1].ctypes.data


def run(model: nn.Module, ours: CompiledLlama, rows: int) -> None:
    """A prompt in pieces, and a token."""
    kv, tokens = empty(ours, rows), texts(rows, 17) % model.args.vocab_size
    kv.reserve(np.full(rows, 17))
    kv.keys, kv.values = keys, values = guarded(kv.keys), guarded(kv.values)
    for start, stop in ((0, 3), (3, 4), (4, 16), (16, 17)):
        logits = ours.logits(ours.run(tokens[:, start:stop], kv))
    assert kv.keys is keys
    assert kv.values is values
    assert np.isfinite(logits).all()


def main() -> None:
    model, kept = made(*KINDS[sys.argv[1]]), []
    adapters = Adapters(model, LoRASettings(rank=3), max_adapters=2)
    rng = np.random.default_rng(3)
    for name in ("one", "other"):
        shapes = adapters.shapes.items()
        weights = {path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes}
        adapters.load(name, weights, 1)
    ours = CompiledLlama(model, Cores(1))
    guard(ours._head, kept)
    for rows in (1, 2, 3, 40):
        adapters.select([adapters.find(("one", None, "other")[row % 3]) for row in range(rows)])
        ours._linears.select()
        guard(ours._linears, kept)
        run(model, ours, rows)


if __name__ == "__main__":
    main()
