"""Monty: right answers to what it knows, limits, and nothing to get out to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hostile import SMALL

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox import Limits, Sandbox, find_sandbox


@pytest.fixture(scope="module")
def monty() -> Sandbox:
    try:
        return find_sandbox("monty")
    except ConfigError as error:
        pytest.skip(str(error))


async def test_right_answers(monty: Sandbox):
    outcome = await monty.run(
        "def f(n): return sum(i * i for i in range(n))\nprint(f(4), 'ß'.upper())\nprint(input())", "hello\n"
    )
    assert (outcome.status, outcome.stdout, outcome.exit_code) == ("ok", "14 SS\nhello\n", 0)


async def test_failures(monty: Sandbox):
    outcome = await monty.run("print('before')\n1 / 0")
    assert (outcome.status, outcome.stdout, outcome.exit_code) == ("error", "before\n", 1)
    assert "ZeroDivisionError" in outcome.stderr
    assert (await monty.run("def f(:")).status == "error"
    assert (await monty.run("input()")).status == "error"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("while True: pass", "timeout"),
        ("kept = []\nwhile True: kept.append('x' * 10000)", "memory"),
        ("while True: print('x' * 1000)", "output"),
        ("def f(): return f()\nf()", "error"),
        ("print(open('/etc/passwd').read())", "error"),
        ("import os\nos.fork()", "error"),
        ("import os\nprint(os.environ['HOME'])", "error"),
        ("import socket", "error"),
        ("import subprocess", "error"),
        ("print(().__class__.__base__.__subclasses__())", "error"),
    ],
)
async def test_is_contained(monty: Sandbox, program: str, status: str):
    outcome = await monty.run(program, limits=replace(SMALL, seconds=1.0))
    assert outcome.status == status, outcome
    assert "root:" not in outcome.stdout
    assert len(outcome.stdout) <= SMALL.output_bytes


async def test_runs_share_nothing(monty: Sandbox):
    await monty.run("x = 1")
    assert (await monty.run("print(x)")).status == "error"


async def test_time_is_bounded_while_asleep(monty: Sandbox):
    assert (await monty.run("import time\ntime.sleep(1000)", limits=Limits(seconds=0.5))).status in (
        "ok",
        "error",
    )
