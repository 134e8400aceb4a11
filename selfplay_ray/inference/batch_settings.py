"""The bounds of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from selfplay_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Most sequences decoded at once, and most that may wait besides (None: any number); most prompt tokens run
    between two decode steps; what keys and values may take in all (None: a quarter of the memory), how much of it those
    that are kept for later prompts (None: a quarter of that), and for how many seconds.

    With ``fork`` off every prompt is run on its own, as if nothing had been run before it.

    Raises:
        ConfigError: a bound that leaves nothing to do.
    """

    max_batch_size: int = 32
    max_waiting: int | None = None
    prefill_step_size: int = 512
    kv_cache_bytes: int | None = None
    prefix_cache_bytes: int | None = None
    prefix_seconds: float = 600.0
    fork: bool = True

    def __post_init__(self) -> None:
        sizes = (
            self.max_batch_size,
            self.prefill_step_size,
            1 if self.kv_cache_bytes is None else self.kv_cache_bytes,
        )
        if (
            min(sizes) < 1
            or min(self.max_waiting or 0, self.prefix_cache_bytes or 0, self.prefix_seconds) < 0
        ):
            raise ConfigError(
                f"an engine needs a batch size, a prefill step and memory for keys and values of 1 or more, and 0 or "
                f"more that wait, and bytes and seconds for prefixes; got {self}"
            )
