"""The BLAS in front of MLX. What is loaded is a matter of the process, so each case runs in its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@linux_only
def test_symbols_of_openblas_come_first() -> None:
    code = (
        "from selfplay_ray import blas; blas.preload(); import ctypes, mlx.core;"
        "blas.require_blas(); print(ctypes.CDLL(None).openblas_get_config is not None)"
    )
    assert run(code).stdout.strip() == "True"


@linux_only
def test_mlx_imported_first_is_one_clear_sentence() -> None:
    done = run("import mlx.core; from selfplay_ray import blas; blas.preload(); blas.require_blas()")
    assert done.returncode != 0
    assert "BLASError" in done.stderr
    assert "import selfplay_ray first" in done.stderr
    assert "SELFPLAY_ALLOW_SLOW_BLAS=1" in done.stderr


@linux_only
def test_a_missing_wheel_is_named() -> None:
    code = (
        "import importlib.metadata as m\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.distribution = missing\n"
        "from selfplay_ray import blas\n"
        "blas.preload(); blas.require_blas()"
    )
    done = run(code)
    assert "pip install cmeel-openblas" in done.stderr


@linux_only
def test_one_may_go_on_without() -> None:
    code = "import mlx.core; from selfplay_ray import blas; blas.preload(); blas.require_blas(); print('on')"
    assert run(code, SELFPLAY_ALLOW_SLOW_BLAS="1").stdout.strip() == "on"


@linux_only
def test_preloading_twice_is_harmless() -> None:
    code = "from selfplay_ray import blas; blas.preload(); blas.preload(); blas.require_blas(); print('on')"
    assert run(code).stdout.strip() == "on"
