from __future__ import annotations

from pathlib import Path

import pytest

from selfplay_ray.atomic_folder import new_folder


def test_it_appears_whole(tmp_path: Path):
    with new_folder(tmp_path / "deep" / "one") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "one").exists()
    assert (tmp_path / "deep" / "one" / "a").read_text() == "1"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["one"]


def test_or_not_at_all(tmp_path: Path):
    def fail_half_way() -> None:
        with new_folder(tmp_path / "one") as folder:
            (folder / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_one_that_came_in_between_is_left_as_it_is(tmp_path: Path):
    def overtaken() -> None:
        with new_folder(tmp_path / "one") as folder:
            (folder / "a").write_text("mine")
            (tmp_path / "one").mkdir()
            (tmp_path / "one" / "a").write_text("theirs")

    with pytest.raises(OSError, match="not empty"):
        overtaken()
    assert (tmp_path / "one" / "a").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
