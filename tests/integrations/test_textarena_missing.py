"""Without TextArena: one sentence that names the extra."""

from __future__ import annotations

import sys

import pytest

from selfplay_ray import cli
from selfplay_ray.errors import ConfigError
from selfplay_ray.integrations.textarena import TextArenaArena


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textarena", None)  # an import of it says that there is no such module


@pytest.mark.usefixtures("missing")
def test_the_extra_is_named():
    with pytest.raises(ConfigError, match=r"pip install 'selfplay-ray\[textarena\]'"):
        TextArenaArena(1, "TicTacToe-v0", 2)


@pytest.mark.usefixtures("missing")
def test_a_job_says_so_before_anything_starts(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "textarena"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("selfplay: TextArena isn't installed")
    assert list(tmp_path.iterdir()) == []
