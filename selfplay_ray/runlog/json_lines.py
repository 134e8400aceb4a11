"""Append-only files of one JSON value a line, that survive a crash in the middle of a line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TypeVar

import msgspec

from selfplay_ray.errors import RunLogError

Row = TypeVar("Row")
BLOCK = 65536


class JsonLines:
    """Appends lines to ``path``, each handed to the system before ``append`` returns.

    Opening cuts off a last line that a crash left without its end, so that the next one starts clean.

    Raises:
        RunLogError: the file can't be opened or written; a line is in the file whole or not at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with os_errors(path):
            self._file = FileIO(path, "a+")
            self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        size = self._file.seek(0, 2)
        end = _line_start(self._file, size)
        if end < size:
            self._file.truncate(end)

    def append(self, line: bytes) -> None:
        """Write ``line`` and its end; it must not hold a newline itself."""
        start = self._file.seek(0, 2)
        rest = memoryview(line + b"\n")
        with os_errors(self._path):
            try:
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(start)
                raise

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path, row_type: type[Row]) -> Iterator[Row]:
    """The rows of ``path``, as far as they are whole: a last line without its end is left out.

    Raises:
        RunLogError: the file can't be read, or a whole line isn't a ``row_type``.
    """
    decoder = msgspec.json.Decoder(row_type)
    with os_errors(path, "read"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise RunLogError(
                    f"line {number} of {path} is damaged ({error}); delete it to go on"
                ) from error


def read_last_row(path: Path, row_type: type[Row]) -> Row | None:
    """The last whole row of ``path``, without reading what is before it; None if there is none yet.

    Raises:
        RunLogError: the file can't be read, or its last whole line isn't a ``row_type``.
    """
    if not path.exists():
        return None
    with os_errors(path, "read"), FileIO(path) as file:
        end = _line_start(file, file.seek(0, 2))
        if end == 0:
            return None
        start = file.seek(_line_start(file, end - 1))
        line = file.read(end - start) or b""
    try:
        return msgspec.json.decode(line, type=row_type)
    except msgspec.MsgspecError as error:
        raise RunLogError(f"the last line of {path} is damaged ({error}); delete it to go on") from error


def _line_start(file: FileIO, position: int) -> int:
    """Where the line that ``position`` lies in begins: after the last line end before it."""
    end = position
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        newline = (file.read(end - start) or b"").rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


@contextmanager
def os_errors(path: Path, verb: str = "write") -> Iterator[None]:
    """Turns what the operating system says about ``path`` into one sentence."""
    try:
        yield
    except OSError as error:
        advice = "; free some space and resume the run" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
        raise RunLogError(f"can't {verb} {path}: {error.strerror or error}{advice}") from error
