"""Data sets through Hugging Face's library: here from a folder, which it takes for a hub id's stand-in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.integrations.hf_datasets import hub_rows

ROWS = [{"question": f"What is {n}?", "answer": str(n)} for n in range(3)]


def test_without_it_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'selfplay-ray\[datasets\]'"):
        next(hub_rows("openai/gsm8k"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    made = tmp_path / "data"
    made.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        (made / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_rows_of_a_split(folder: Path):
    assert list(hub_rows(str(folder))) == ROWS
    assert list(hub_rows(str(folder), split="test")) == ROWS[:1]


@pytest.mark.parametrize(("subset", "split"), [("", "validation"), ("main", "train")])
def test_what_is_not_there_is_named(folder: Path, subset: str, split: str):
    with pytest.raises(ConfigError, match=rf"subset {subset or 'none'}, split {split}\) can't be had: \S+"):
        list(hub_rows(str(folder), subset, split))
