"""Functions that Numba compiles, when they are first imported, and keeps on disk where it may."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(signature: Any) -> Callable[[Function], Function]:
    """Compile a function for arguments of ``signature``; other threads run beside it. Whoever imports it next takes
    what lies beside its file, or else in the user's cache: that of its machine, as long as the file doesn't change."""

    def compile_it(function: Function) -> Function:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        try:
            made = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # there is nowhere to keep it
            made = numba.njit(**options)(function)
        try:
            made.compile(signature)
        except OSError:  # it is compiled, but the disk is full
            assert made.signatures
        made.disable_compile()  # what can be taken for the signature's types is
        return cast(Function, made)

    return compile_it


def inlined(function: Function | None = None, **options: Any) -> Any:
    """A part of compiled functions; of ``options`` Numba tells."""
    if function is None:
        return partial(inlined, **options)
    return numba.njit(nogil=True, error_model="numpy", **options)(function)
