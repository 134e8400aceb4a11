"""A checkpoint: one folder that is there whole, or not at all.

    adapter.safetensors     the policy's adapter, its LoRA settings and its version
    optimizer.safetensors   Adam's moments and step count
    state.json              version, counters, what the caller keeps beside, and the digests of the other two

Arrays are safetensors and the rest is JSON: nothing in it can run code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np

from selfplay_ray.errors import AdapterError, TrainingError
from selfplay_ray.lora import SavedAdapter, load_adapter, save_adapter

FORMAT = 1
ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a trainer needs to go on exactly, and ``extra``: JSON of the caller's own."""

    adapter: SavedAdapter
    optimizer: Mapping[str, np.ndarray]
    counters: Mapping[str, int]
    extra: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``folder``, replacing one that is there only once the new one is complete.

    Raises:
        TrainingError: ``extra`` isn't JSON; or it can't be written, and the one before is untouched.
        AdapterError: the adapter can't be written.
    """
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        _write_files(unfinished, checkpoint)
        _put_in_place(unfinished, folder)
    except (OSError, RuntimeError) as error:  # the latter is MLX's word for a full disk
        reason = error.strerror if isinstance(error, OSError) else error
        raise TrainingError(
            f"can't write checkpoint {folder}: {reason}; check that it may be written and that there is space, and "
            "resume the run"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read what ``write_checkpoint`` wrote.

    Raises:
        TrainingError: there is none, a file of it is missing, or it isn't what was written.
    """
    folder = folder.absolute()
    if not folder.exists() and _set_aside(folder).exists():
        folder = _set_aside(folder)  # killed between the two renames that replace a checkpoint
    if not (folder / STATE).is_file():
        raise TrainingError(f"there is no checkpoint at {folder}")
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise TrainingError(
                f"checkpoint {folder} has format {state['format']}; this version reads {FORMAT}"
            )
        for name, digest in state["files"].items():
            if _digest(folder / name) != digest:
                raise TrainingError(
                    f"checkpoint {folder} is damaged: {name} is not the file that was written"
                )
        optimizer = cast("dict[str, mx.array]", mx.load(str(folder / OPTIMIZER)))
        arrays = {name: np.array(value) for name, value in optimizer.items()}
        return Checkpoint(load_adapter(folder / ADAPTER), arrays, state["counters"], state["extra"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, AdapterError) as error:
        raise TrainingError(f"checkpoint {folder} is damaged: {error}") from error


def read_extra(folder: Path) -> dict[str, Any]:
    """The ``extra`` of a checkpoint, without reading the rest of it.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
    try:
        extra = json.loads((folder / STATE).read_text(encoding="utf-8"))["extra"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"checkpoint {folder} is damaged: {error}") from error
    return cast("dict[str, Any]", extra)


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    adapter = checkpoint.adapter
    save_adapter(folder / ADAPTER, adapter.weights, adapter.settings, adapter.version)
    mx.save_safetensors(
        str(folder / OPTIMIZER), {name: mx.array(value) for name, value in checkpoint.optimizer.items()}
    )
    state = {
        "format": FORMAT,
        "version": adapter.version,
        "counters": dict(checkpoint.counters),
        "extra": dict(checkpoint.extra),
        "files": {name: _digest(folder / name) for name in (ADAPTER, OPTIMIZER)},
    }
    try:
        text = json.dumps(state, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"what was given to keep in the checkpoint isn't JSON: {error}") from error
    (folder / STATE).write_text(text, encoding="utf-8")


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Flush the new checkpoint to disk, then swap it with the old one: whole at every moment."""
    for path in (*unfinished.iterdir(), unfinished):
        _flush(path)
    old = _set_aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    unfinished.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    """Where the old checkpoint is while the new one takes its place; no system renames a folder over another."""
    return folder.with_name(f".{folder.name}.replaced")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
