"""A new folder that is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to write into, beside ``folder``, which takes that name when the block ends well and is
    removed when it doesn't.

    Raises:
        OSError: it can't be made or renamed.
    """
    unfinished = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.unfinished")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
