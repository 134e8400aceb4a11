"""Which adapters a run has left, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import AdapterError, ConfigError
from selfplay_ray.run_adapters import RunAdapter, find_adapter, ranges
from selfplay_ray.runlog.folder import RunLog


@pytest.fixture
def run(tmp_path: Path) -> RunLog:
    """A run of org/model that has left versions 1, 2, 3 and 12, and something that isn't one."""
    log = RunLog.create(tmp_path / "runs", "mine", "task")
    log.write_config(RunConfig(model_path="org/model"))
    log.adapters_dir.mkdir()
    for version in (1, 2, 3, 12):
        log.adapter_path(version).touch()
    (log.adapters_dir / ".v000013.safetensors.7.unfinished.safetensors").touch()
    return log


def test_the_last_one_or_the_version_asked_for(run: RunLog):
    assert find_adapter(run.folder) == RunAdapter(run.adapter_path(12), "org/model")
    assert find_adapter(run.folder, 2) == RunAdapter(run.adapter_path(2), "org/model")


def test_a_version_that_is_not_there_is_told_which_are(run: RunLog):
    with pytest.raises(ConfigError) as refused:
        find_adapter(run.folder, 4)
    assert str(refused.value) == f"the run in {run.folder} has no version 4; it has 1-3, 12"


def test_a_file_is_itself_and_its_run_is_known_where_it_lies_in_one(run: RunLog, tmp_path: Path):
    assert find_adapter(run.adapter_path(2)) == RunAdapter(run.adapter_path(2), "org/model")
    (tmp_path / "elsewhere.safetensors").touch()
    assert find_adapter(tmp_path / "elsewhere.safetensors").model is None
    with pytest.raises(
        ConfigError, match="is one adapter; a version is picked among those of a run's folder"
    ):
        find_adapter(run.adapter_path(2), 2)


def test_where_there_is_no_run_or_none_that_has_got_anywhere(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^there is no run and no adapter at .*/none; give a run's folder"):
        find_adapter(tmp_path / "none")
    with pytest.raises(ConfigError, match="there is no run and no adapter"):
        find_adapter(tmp_path)  # a folder, but not of a run
    log = RunLog.create(tmp_path, "new", "task")
    log.write_config(RunConfig())
    with pytest.raises(
        AdapterError, match=r"new has no adapter yet; the first is there after its first step, or "
    ):
        find_adapter(log.folder)


def test_a_configuration_of_something_else_is_refused(run: RunLog):
    run.config_path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="doesn't name a model"):
        find_adapter(run.folder)


def test_ranges():
    assert ranges([1]) == "1"
    assert ranges([1, 2]) == "1-2"
    assert ranges([3, 7, 8, 9, 12]) == "3, 7-9, 12"


@given(st.sets(st.integers(0, 60)))
def test_ranges_lose_nothing(numbers: set[int]):
    spans = [span.split("-") for span in ranges(sorted(numbers)).split(", ") if span]
    assert [n for span in spans for n in range(int(span[0]), int(span[-1]) + 1)] == sorted(numbers)


def test_where_all_weights_are_trained_checkpoints_hold_them(tmp_path: Path):
    log = RunLog.create(tmp_path, "whole", "task")
    log.write_config(RunConfig(model_path="org/model", lora_rank=0))
    log.adapters_dir.mkdir()
    with pytest.raises(AdapterError, match="has no adapter yet"):
        find_adapter(log.folder)
    for name in ("v000010", "v000020", ".v000030.7.unfinished"):
        folder = log.checkpoints_dir / name
        folder.mkdir(parents=True)
        (folder / "adapter.safetensors").touch()
    last = RunAdapter(log.checkpoints_dir / "v000020" / "adapter.safetensors", "org/model")
    assert find_adapter(log.folder) == last
    with pytest.raises(ConfigError, match="has no version 30; it has 10, 20"):
        find_adapter(log.folder, 30)
    assert find_adapter(last.path) == last


def test_a_file_at_the_root_of_everything_lies_in_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "is_file", lambda path: path.name == "a.safetensors")
    assert find_adapter(Path("/a.safetensors")) == RunAdapter(Path("/a.safetensors"), None)
