"""Adapters in folders that endpoints read: written by who needs one first, removed by who needs it last."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock

from selfplay_ray.inference.peft import save_peft
from selfplay_ray.runlog.json_lines import os_errors


class AdapterFolders:
    """The part that ``user`` has in the folders under ``root``, which several processes share.

    A folder stays as long as anybody uses it: a server may read it again whenever it has put an adapter out of its
    memory. ``scale`` and ``base_model`` are those of all the adapters.
    """

    def __init__(self, root: Path, user: str, scale: float, base_model: str) -> None:
        self._root = root
        self._user = user
        self._scale = scale
        self._base_model = base_model

    def take(self, name: str, weights: Mapping[str, np.ndarray]) -> Path:
        """The folder of adapter ``name``, in PEFT's shape; what is there under that name already is the same.

        Raises:
            AdapterError: these are no weights of an adapter.
            RunLogError: the folder can't be written.
        """
        folder = self._root / name
        with os_errors(folder):
            self._root.mkdir(exist_ok=True)
        with self._lock(), os_errors(folder):
            if not folder.exists():
                save_peft(folder, weights, self._scale, self._base_model)
            self._mark(name).touch()
        return folder

    def give_back(self, name: str) -> None:
        """Need ``name`` no longer."""
        if not self._root.exists():
            return
        with self._lock(), os_errors(self._root):
            self._mark(name).unlink(missing_ok=True)
            if not any(self._root.glob(f".{name}.used-by-*")):
                shutil.rmtree(self._root / name, ignore_errors=True)

    def _lock(self) -> FileLock:
        return FileLock(self._root / ".lock")

    def _mark(self, name: str) -> Path:
        return self._root / f".{name}.used-by-{self._user}"
