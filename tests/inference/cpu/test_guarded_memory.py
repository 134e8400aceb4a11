"""Compiled code reads nothing beyond what it is given: pointers have no bounds that anybody else would look at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("guarded_memory.py")


@pytest.mark.parametrize("kind", ["llama, widths of no 16", "llama, smaller than any tile", "qwen2"])
def test_nothing_is_read_beyond_weights_keys_and_values(kind: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-X", "faulthandler", str(PROGRAM), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
