"""Functions that Numba compiles when they are first called, and keeps on disk where it may."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import numba

Given = ParamSpec("Given")
Returned = TypeVar("Returned")

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
"""Other threads run beside it; a division by zero is infinite."""

NOT_FROM_PYTHON = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""What only compiled functions call takes less time to compile."""


class compiled(Generic[Given, Returned]):  # noqa: N801  a decorator
    """A function, compiled for what it is called with. Whoever calls it next takes what lies beside its file, or else
    in the user's cache: that of its machine, as long as the file doesn't change."""

    def __init__(self, function: Callable[Given, Returned]) -> None:
        try:
            self._made: Any = numba.njit(cache=True, **OPTIONS)(function)
        except RuntimeError:  # there is nowhere to keep it
            self._made = numba.njit(**OPTIONS)(function)

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Returned:
        try:
            returned: Returned = self._made(*args, **kwargs)
        except OSError:  # the disk is full; but it is compiled, and does nothing itself that could fail so
            returned = self._made(*args, **kwargs)
        return returned


def inlined(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A part of compiled functions; of ``options`` Numba tells."""
    if function is None:
        return partial(inlined, **options)
    return numba.njit(**OPTIONS, **NOT_FROM_PYTHON, **options)(function)
