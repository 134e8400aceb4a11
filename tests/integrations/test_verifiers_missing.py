"""Without verifiers, or with an older one: one sentence that names the extra."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from selfplay_ray import cli
from selfplay_ray.errors import ConfigError
from selfplay_ray.integrations.verifiers import VerifiersArena
from selfplay_ray.integrations.verifiers_environment import Environment


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers", None)  # an import of it says that there is no such module
    monkeypatch.delitem(sys.modules, "verifiers.v1", raising=False)


@pytest.mark.usefixtures("missing")
def test_the_extra_is_named():
    with pytest.raises(ConfigError, match=r"pip install 'selfplay-ray\[verifiers\]'"):
        VerifiersArena(1, Environment("some-tasks"))


def test_an_older_one_will_not_do(monkeypatch: pytest.MonkeyPatch):
    older = ModuleType("verifiers")
    older.__path__ = []  # a package without the module that 0.4 has
    monkeypatch.setitem(sys.modules, "verifiers", older)
    monkeypatch.delitem(sys.modules, "verifiers.v1", raising=False)
    with pytest.raises(ConfigError, match=r"verifiers 0\.4 isn't installed"):
        Environment("some-tasks").make()


@pytest.mark.usefixtures("missing")
def test_a_job_says_so_before_anything_starts(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "verifiers"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("selfplay: verifiers 0.4 isn't installed")
    assert list(tmp_path.iterdir()) == []
