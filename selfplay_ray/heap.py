"""glibc's heap, kept from growing for ever.

MLX's arrays on a CPU come from malloc. As large ones are freed glibc raises, up to 32 MiB, the size from which it asks
the kernel for a mapping of its own; what is smaller then lands in heaps that fragment and never shrink. An engine that
served for an hour took a third more memory than it used.
"""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # <malloc.h>
THRESHOLD_BYTES = 256 * 2**10


def return_large_blocks() -> None:
    """Let every block of a quarter of a megabyte and more go back to the system when it is freed. Linux with glibc
    only; elsewhere nothing is done."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)
