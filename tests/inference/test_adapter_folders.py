from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfplay_ray.errors import AdapterError, RunLogError
from selfplay_ray.inference.adapter_folders import AdapterFolders

WEIGHTS = {
    "model.layers.0.self_attn.q_proj.lora_a": np.ones((4, 2), np.float32),
    "model.layers.0.self_attn.q_proj.lora_b": np.ones((2, 4), np.float32),
}


def folders(root: Path, user: str) -> AdapterFolders:
    return AdapterFolders(root, user, scale=2.0, base_model="tiny")


def test_a_folder_is_written_once_and_stays_until_the_last_gives_it_back(tmp_path: Path):
    root = tmp_path / "published"
    one, other = folders(root, "endpoint-0"), folders(root, "endpoint-1")
    folder = one.take("live@v1", WEIGHTS)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    written = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    assert other.take("live@v1", WEIGHTS) == folder
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == written

    other.take("live@v10", WEIGHTS)  # a name that begins with another's
    one.give_back("live@v1")
    one.give_back("live@v1")  # twice is once
    assert folder.is_dir()
    other.give_back("live@v1")
    assert not folder.exists()
    assert (root / "live@v10").is_dir()
    other.give_back("live@v10")
    assert [path.name for path in root.iterdir()] == [".lock"]
    assert one.take("live@v1", WEIGHTS).is_dir()  # by who comes late


def test_where_nothing_was_ever_written_nothing_is_given_back(tmp_path: Path):
    folders(tmp_path / "published", "endpoint-0").give_back("live@v1")
    assert not (tmp_path / "published").exists()


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path):
    with pytest.raises(AdapterError, match="there are no adapter weights to save"):
        folders(tmp_path / "published", "endpoint-0").take("live@v1", {})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunLogError, match=r"^can't write .*file/published/live@v1: Not a directory"):
        folders(tmp_path / "file" / "published", "endpoint-0").take("live@v1", WEIGHTS)
