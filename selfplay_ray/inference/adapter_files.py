"""Adapters on disk, whoever wrote them: folders of PEFT's, and files of a run's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mlx import nn

from selfplay_ray.errors import AdapterError
from selfplay_ray.inference.peft import (
    CONFIG_FILE,
    AdapterShape,
    PeftConfig,
    Weights,
    from_peft,
    read_peft,
    rescaled,
    to_peft,
)
from selfplay_ray.lora import SavedAdapter, load_adapter, read_adapter, write_adapter


def read_any_adapter(path: Path, shape: AdapterShape, fresh: Weights | None = None) -> dict[str, np.ndarray]:
    """The adapter at ``path``, a folder of PEFT's or a file of a run's, as one of ``shape`` that computes the same.

    It may be of a smaller rank, of another scale and on fewer layers.

    Args:
        fresh: a new adapter of ``shape``, its A random and its B zero, to take what is missing from. Needed to train
            it: where both halves are zero they stay so.

    Raises:
        AdapterError: there is none, it can't be read, or it doesn't fit.
    """
    try:
        if (path / CONFIG_FILE).is_file():
            weights, config = read_peft(path)
            return from_peft(weights, config, shape, fresh)
        if path.is_dir():
            raise AdapterError(
                f"it has no {CONFIG_FILE}; give a folder of PEFT's or the file of a run's adapter"
            )
        return _of_a_run(load_adapter(path), shape, fresh)
    except AdapterError as error:
        raise AdapterError(f"the adapter {path} can't be used: {error}") from error


def begin_with(model: nn.Module, path: Path, scale: float) -> None:
    """Give ``model``, whose adapter of ``scale`` is new, the adapter at ``path``; see ``read_any_adapter``."""
    fresh = read_adapter(model)
    shape = AdapterShape({name: value.shape for name, value in fresh.items()}, scale)
    write_adapter(model, read_any_adapter(path, shape, fresh))


def _of_a_run(adapter: SavedAdapter, shape: AdapterShape, fresh: Weights | None) -> dict[str, np.ndarray]:
    settings = adapter.settings
    if {name: value.shape for name, value in adapter.weights.items()} == dict(shape.shapes):
        return rescaled(adapter.weights, settings.scale, shape)
    as_peft = PeftConfig(r=settings.rank, lora_alpha=settings.scale * settings.rank)
    return from_peft(to_peft(adapter.weights), as_peft, shape, fresh)
