"""However a run is ended, it ends soon, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import agents, alive, end, family

Launch = Callable[..., subprocess.Popen[str]]

SOON = 30  # it takes less than 5 where nothing else runs; machines that run tests are busy; Ray's start is waited for

ALL_MOMENTS = [
    ("starting Ray", 0.0, signal.SIGINT),
    ("loading the model", 1.0, signal.SIGINT),
    ("step 1/", 0.0, signal.SIGINT),
] * (os.environ.get("INTERRUPTS") == "all")
"""Most of the time; left out unless they are asked for."""


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    """Read what the run says until it says ``line``."""
    assert process.stdout is not None
    for said in process.stdout:
        if line in said:
            return
    raise AssertionError(f"the run ended without saying {line!r}: {process.communicate()}")


@pytest.mark.parametrize(
    ("moment", "delay", "number"),
    [
        *ALL_MOMENTS,
        ("starting Ray", 1.5, signal.SIGINT),
        ("step 1/", 0.0, signal.SIGTERM),
    ],
)
def test_a_run_that_is_interrupted_leaves_no_process(
    moment: str, delay: float, number: signal.Signals, launch: Launch, tiny: Path
):
    process = launch(
        "--model-path", str(tiny), "--num-steps", "100000", "--batch-size", "4", "--min-trainable", "0"
    )
    wait_for(process, moment)
    time.sleep(delay)
    processes = family(process.pid)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == 130
    assert "selfplay: " not in err  # Python itself may say that it was interrupted in the middle of a fork
    assert alive(processes - agents(), SOON) == set()


def test_a_run_that_is_killed_leaves_no_actor(launch: Launch, tiny: Path):
    process = launch(
        "--model-path", str(tiny), "--num-steps", "100000", "--batch-size", "4", "--min-trainable", "0"
    )
    wait_for(process, "step 1/")
    processes = family(process.pid)
    process.kill()
    left = alive(processes - agents(), SOON)
    for pid in alive(processes, 0):
        end(pid)
    assert left == set()
