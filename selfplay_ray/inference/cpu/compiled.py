"""Functions that Numba compiles when they are first called, and keeps on disk where it may."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import numba

COMPILES = not numba.config.DISABLE_JIT
"""Not where somebody who looks for a fault has set NUMBA_DISABLE_JIT."""

Given = ParamSpec("Given")
Returned = TypeVar("Returned")

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
"""Other threads run beside it; a division by zero is infinite."""

NOT_FROM_PYTHON = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""What only compiled functions call takes less time to compile."""


def edition(folder: Path) -> str:
    """What all source files of a folder come to, with this Numba: another one, where any of them differs."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


EDITION = edition(Path(__file__).parent)


class compiled(Generic[Given, Returned]):  # noqa: N801  a decorator
    """A function, compiled for what it is called with, which raises nothing itself. Whoever calls it next takes what
    lies beside its file, or else in the user's cache: that of its machine, and of this EDITION. (Numba looks at the
    function's own file only, and on a full disk may leave old code under the new file's stamp.)"""

    def __init__(self, function: Callable[Given, Returned]) -> None:
        function.__qualname__ += f"_{EDITION}"  # after which Numba names its files
        try:
            self._made: Any = numba.njit(cache=True, **OPTIONS)(function)
        except RuntimeError:  # there is nowhere to keep it
            self._made = numba.njit(**OPTIONS)(function)

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Returned:
        try:
            returned: Returned = self._made(*args, **kwargs)
        except MemoryError:
            raise
        except OSError:  # the disk is full; but it is compiled
            returned = self._made(*args, **kwargs)
        except Exception:  # noqa: BLE001  what was kept is torn, and unpickling that may raise anything
            with suppress(OSError):
                self._made._cache.flush()
            returned = self._made(*args, **kwargs)
        return returned


def inlined(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A part of compiled functions; of ``options`` Numba tells."""
    if function is None:
        return partial(inlined, **options)
    return numba.njit(**OPTIONS, **NOT_FROM_PYTHON, **options)(function)
