"""The dependencies resolve, from wheels alone, for every platform and Python we promise: the ones not at hand too."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NO_SOLUTION = 1  # uv's exit code; 2 is any other failure
MAC = "aarch64-apple-darwin"
# uv's plain names for Linux assume an older C library than mlx is built for.
EXTRAS = sorted(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    - {"reasoning-gym"}  # which needs a C compiler: pycosat has no wheels
)
LINUX = ("x86_64-manylinux_2_35", "aarch64-manylinux_2_35")


def resolve(platform: str, python: str) -> set[str]:
    """The names of the distributions that the project with all its extras but one comes to."""
    certificate = os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT")
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL")
    environment = {
        **os.environ,
        "MACOSX_DEPLOYMENT_TARGET": "14.0",
        "UV_PYTHON_DOWNLOADS": "never",  # it resolves for a Python that need not be here
        **({"SSL_CERT_FILE": certificate} if certificate else {}),
        **({"UV_DEFAULT_INDEX": index} if index else {}),
    }
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    target = ["--python-platform", platform, "--python-version", python, "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, *target, *(flag for name in EXTRAS for flag in ("--extra", name)), "pyproject.toml"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, NO_SOLUTION) and "Failed to fetch" in done.stderr:
        pytest.skip(f"uv reaches no package index: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return {line.partition("==")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_it_resolves_for_a_mac(python: str):
    names = resolve(MAC, python)
    assert {"mlx", "mlx-metal", "mlx-lm", "ray"} <= names
    assert not {"mlx-cpu", "mlx-cuda-13", "cmeel-openblas"} & names  # Accelerate and Metal do their work


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("platform", LINUX)
def test_it_resolves_for_linux(platform: str, python: str):
    names = resolve(platform, python)
    assert {"mlx", "mlx-cpu", "cmeel-openblas", "mlx-lm", "ray", "mlx-cuda-13"} <= names
    assert "mlx-metal" not in names
