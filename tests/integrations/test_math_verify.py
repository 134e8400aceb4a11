"""math-verify in a process of its own: what it says, and that nothing makes it hang or raise."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from selfplay_ray.errors import ConfigError, RubricError
from selfplay_ray.integrations.math_verify import Checker, MathVerify

SLOW = "9^{9^{9^{9^9}}}"


def test_without_it_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"pip install 'selfplay-ray\[math\]'"):
        MathVerify()


@pytest.mark.parametrize(
    ("reply", "answer", "worth"),
    [
        ("7", "7", 1),
        ("So it is $7$.", "7", 1),
        (r"\boxed{\frac{1}{2}}", "0.5", 1),
        (r"$\frac{2}{4}$", r"\frac{1}{2}", 1),
        ("$x^2 + 2x + 1$", "$(x+1)^2$", 1),
        ("$-7$", "7", 0),
        ("8", "7", 0),
        ("", "7", 0),
        ("no idea", "7", 0),
        (r"\boxed{", "7", 0),
        ("1,234", "1234", 1),
    ],
)
async def test_equal_expressions(reply: str, answer: str, worth: int):
    pytest.importorskip("math_verify")
    assert await MathVerify()(reply, answer) == worth


async def test_many_at_once_from_the_event_loop():
    pytest.importorskip("math_verify")
    score = MathVerify()
    asked = [score(str(n % 3), "1") for n in range(30)]
    assert await asyncio.gather(*asked) == [float(n % 3 == 1) for n in range(30)]


@pytest.mark.parametrize(
    "reply", [f"${SLOW}$", f"${SLOW} - {SLOW}$", r"$(x+1)^{10^{10}}$", "$" + "(" * 3000 + "$"]
)
async def test_what_takes_for_ever_is_wrong_and_what_comes_after_it_is_not(reply: str):
    pytest.importorskip("math_verify")
    score = MathVerify(seconds=2)
    assert await asyncio.gather(score(reply, "7"), score("$7$", "7")) == [0.0, 1.0]


async def test_a_checker_that_fails_is_no_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RubricError, match="math-verify ended with exit code 3"):
        await Checker().same("7", "7", 1)
