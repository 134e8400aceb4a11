"""Where chance comes from: every draw in a run is keyed by the run's seed and the name of what draws.

So a sample doesn't depend on what else happened to be running, and a request sent twice draws the same.
"""

from __future__ import annotations

import hashlib
import random


def derive_seed(seed: int, *path: str | int) -> int:
    """64 bits that depend on all of ``seed`` and ``path``, and on nothing else."""
    text = "\x1f".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def derive_rng(seed: int, *path: str | int) -> random.Random:
    """A random generator of one's own, keyed like :func:`derive_seed`."""
    return random.Random(derive_seed(seed, *path))  # noqa: S311 - for sampling, not for secrets
