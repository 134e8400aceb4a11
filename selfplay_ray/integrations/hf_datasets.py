"""Data sets from the Hugging Face hub, through its `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from selfplay_ray.errors import ConfigError
from selfplay_ray.problems import Row


def hub_rows(hub_id: str, subset: str = "", split: str = "train") -> Iterator[Row]:
    """The rows of a data set's ``split``, one by one: what isn't read of a large one isn't fetched.

    No code that came with a data set is run.

    Raises:
        ConfigError: `datasets` isn't installed, or there is no such data set, subset or split, or no way to it.
    """
    datasets = _datasets()
    try:
        rows = datasets.load_dataset(hub_id, subset or None, split=split, streaming=True)
        yield from rows
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"data set {hub_id!r} (subset {subset or 'none'}, split {split}) can't be had: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _datasets() -> ModuleType:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ConfigError(
            "Hugging Face's datasets library isn't installed; it comes with an extra: "
            "pip install 'selfplay-ray[datasets]'"
        ) from None
    return datasets  # type: ignore[no-any-return]
