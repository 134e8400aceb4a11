"""OpenBLAS in front of the reference BLAS that mlx's CPU wheel for Linux bundles.

The wheel's own BLAS multiplies float32 matrices 60 to 100 times slower. Whichever library is loaded first with
global symbols answers MLX's calls, so ``preload`` runs before anything imports ``mlx.core``. macOS needs none
of this (Accelerate), nor does CUDA.
"""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from selfplay_ray.errors import BLASError

ALLOW_SLOW = "SELFPLAY_ALLOW_SLOW_BLAS"
GFORTRAN = "libgfortran.so.5"

_problem: str | None = "selfplay_ray.blas.preload() was not called"
_kept_open: list[ctypes.CDLL] = []


def preload() -> None:
    """Load OpenBLAS with global symbols where MLX would need it; remember why if that can't be done."""
    global _problem
    if sys.platform != "linux" or _problem is None:
        return
    if "mlx.core" in sys.modules:
        _problem = "mlx was imported before selfplay_ray; import selfplay_ray first"
        return
    try:
        _load_openblas(Path(str(distribution("cmeel-openblas").locate_file("cmeel.prefix/lib"))))
    except PackageNotFoundError:
        _problem = "cmeel-openblas is not installed; pip install cmeel-openblas"
    except OSError as error:
        _problem = f"cmeel-openblas can't be loaded ({error}); install {GFORTRAN} or reinstall cmeel-openblas"
    else:
        _problem = None


def require_blas() -> None:
    """Check that MLX multiplies at a usable speed in this process.

    Raises:
        BLASError: on Linux, with MLX on the CPU, OpenBLAS isn't in front of MLX's own BLAS.
    """
    if sys.platform != "linux" or _problem is None or os.environ.get(ALLOW_SLOW):
        return
    import mlx.core as mx

    if mx.default_device() != mx.Device(mx.cpu):
        return
    raise BLASError(
        f"MLX would run about 60 times slower than it need be on this CPU: {_problem} "
        f"(or set {ALLOW_SLOW}=1 to go on anyway)"
    )


def _load_openblas(folder: Path) -> None:
    library = str(folder / "libopenblas.so.0")
    try:
        _load_globally(library)
    except OSError as error:
        if GFORTRAN not in str(error):
            raise
        _load_bundled_gfortran()
        _load_globally(library)


def _load_bundled_gfortran() -> None:
    """Provide libgfortran, which OpenBLAS needs and a bare system lacks, from the copy inside mlx's own wheel.

    That copy goes by another name (``libgfortran-f7379c93.so.5.0.0``), and the loader matches names. So a copy
    in memory gets the plain name written over the longer one.
    """
    try:
        folder = Path(str(distribution("mlx-cpu").locate_file("mlx_cpu.libs")))
    except PackageNotFoundError:
        raise OSError(f"{GFORTRAN} is missing") from None
    bundled = next(folder.glob("libgfortran-*.so.5*"), None)
    if bundled is None:
        raise OSError(f"{GFORTRAN} is missing")
    for quadmath in folder.glob("libquadmath-*"):  # libgfortran's own need, on x86-64 only
        _load_globally(str(quadmath))
    name = bundled.name.encode() + b"\0"
    renamed = bundled.read_bytes().replace(name, (GFORTRAN.encode() + b"\0").ljust(len(name), b"\0"))
    descriptor = os.memfd_create(GFORTRAN)
    with os.fdopen(descriptor, "wb") as memory:
        memory.write(renamed)
        memory.flush()
        _load_globally(f"/proc/self/fd/{descriptor}")


def _load_globally(path: str) -> None:
    _kept_open.append(ctypes.CDLL(path, ctypes.RTLD_GLOBAL))
