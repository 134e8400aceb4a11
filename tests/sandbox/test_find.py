"""Which sandbox is taken, and what is said where there is none."""

from __future__ import annotations

import sys

import pytest
from sandboxes_here import found

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox import SANDBOXES, Limits, find, find_sandbox
from selfplay_ray.sandbox.bubblewrap import Bubblewrap
from selfplay_ray.sandbox.interpreter import Interpreter
from selfplay_ray.sandbox.limits import DEFAULT_LIMITS, Outcome, Sandbox
from selfplay_ray.sandbox.unsafe import UnsafeSubprocess


def missing(reason: str):
    def find() -> Sandbox:
        raise ConfigError(reason)

    return find


def test_the_first_that_works_is_taken(monkeypatch: pytest.MonkeyPatch):
    sandbox = found("bubblewrap")
    assert find_sandbox() == sandbox
    assert find_sandbox("bubblewrap").name == "bubblewrap"


def test_without_any_it_refuses_in_one_sentence_that_names_the_flag(monkeypatch: pytest.MonkeyPatch):
    """Although a process without any walls could be had."""
    reasons = {name: missing(f"{name} is missing") for name in find.BY_ITSELF}
    monkeypatch.setattr(find, "SANDBOXES", {**SANDBOXES, **reasons})
    with pytest.raises(ConfigError) as refused:
        find_sandbox()
    said = str(refused.value)
    assert "\n" not in said
    assert "--sandbox (bubblewrap, sandbox-exec, docker, monty, unsafe-subprocess)" in said
    assert said.endswith("bubblewrap is missing; sandbox-exec is missing; docker is missing")


def test_one_that_is_named_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(find, "SANDBOXES", {"docker": missing("docker isn't installed")})
    with pytest.raises(
        ConfigError, match="--sandbox docker can't be used on this machine: docker isn't installed"
    ):
        find_sandbox("docker")
    with pytest.raises(ConfigError, match="--sandbox bwrap is unknown; there are auto, docker"):
        find_sandbox("bwrap")


class Wrong(Sandbox):
    name = "wrong"

    async def run(self, program: str, stdin: str = "", limits: Limits = DEFAULT_LIMITS) -> Outcome:
        return Outcome("error", "", "no such\nthing", 1, 0.1)


def test_one_that_gives_a_wrong_answer_is_none():
    with pytest.raises(ConfigError, match=r"wrong ran print\(6 \* 7\) as error: no such thing"):
        find.tried(Wrong())


@pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux")
def test_bubblewrap_where_it_may_do_nothing_is_none(tmp_path):
    forbidden = tmp_path / "bwrap"
    forbidden.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    forbidden.chmod(0o755)
    with pytest.raises(ConfigError, match="exit code 1: bwrap: No permissions"):
        find.tried(Bubblewrap(str(forbidden), Interpreter.running(), user_namespace=True))


async def test_a_sandbox_is_found_within_a_running_loop():
    assert find_sandbox("unsafe-subprocess").name == "unsafe-subprocess"


def test_it_is_never_chosen_by_itself():
    assert UnsafeSubprocess.name not in find.BY_ITSELF
    assert "monty" not in find.BY_ITSELF  # valid programs fail in it


def test_the_interpreter_is_that_beneath_the_virtual_environment():
    interpreter = Interpreter.running()
    assert not interpreter.executable.startswith(sys.prefix) or sys.prefix == sys.base_prefix
    assert not any(
        path.startswith(sys.prefix) for path in interpreter.packages if sys.prefix != sys.base_prefix
    )
