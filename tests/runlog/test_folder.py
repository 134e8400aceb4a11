"""A run's folder: refused when taken, whole after a crash, clear when the disk is full."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from limits import files_of_at_most

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError, RunLogError
from selfplay_ray.runlog.folder import RunLog, read_metrics
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.runlog.rollouts import read_last_rollouts, read_rollouts
from selfplay_ray.types import (
    Completion,
    GenerateResult,
    Message,
    PolicySpan,
    RoleStats,
    Rollout,
    Step,
)


def metrics(step: int, loss: float = 0.5) -> StepMetrics:
    return StepMetrics(
        step=step,
        version=step,
        time=1_700_000_000.25,
        rewards={"Solver": RoleStats(8, 0.25, 0.5)},
        finished=9,
        failed=1,
        dropped_stale=0,
        staleness_mean=0.5,
        staleness_max=1,
        tokens_per_second=210.0,
        learner_wait_seconds=0.4,
        engine_wait_seconds=0.1,
        values={"train/loss": loss},
    )


def step(text: str) -> Step:
    completion = Completion(text, (1, 2, 3), (4, 5), (-0.5, -0.25), (PolicySpan(0, 2, 7),), "stop")
    return Step(
        "Solver", 0, [Message(role="user", content="2 + 3?")], completion, 1.0, reward=1.0, advantage=0.5
    )


def tree(rollout_id: str = "0", text: str = "5") -> GenerateResult:
    child = Rollout(f"{rollout_id}/0/0", "solve", "2 + 3?", steps=[step(text)], rewards={"Solver": 1.0})
    parent = Rollout(rollout_id, "propose", error="Traceback: boom")
    return GenerateResult(parent, [GenerateResult(child, group="g")])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RunLog]:
    log = RunLog.create(tmp_path, "run", "proposer_solver")
    yield log
    log.close()


def test_a_run_without_a_name_gets_one_of_its_own(tmp_path: Path) -> None:
    logs = [RunLog.create(tmp_path / "runs", "", "proposer solver/2") for _ in range(3)]
    assert len({log.name for log in logs}) == 3
    for log in logs:
        assert re.fullmatch(r"proposer-solver-2-\d{8}-\d{6}-[0-9a-f]{4}", log.name)
        assert log.folder.is_dir()


def test_a_folder_that_holds_a_run_is_refused_unless_resumed(tmp_path: Path) -> None:
    (tmp_path / "kuhn").mkdir()
    first = RunLog.create(tmp_path, "kuhn", "poker")  # an empty folder will do
    first.log_step(metrics(1))
    first.close()
    with pytest.raises(ConfigError, match="kuhn holds a run already; give this one another name"):
        RunLog.create(tmp_path, "kuhn", "poker")
    resumed = RunLog.create(tmp_path, "kuhn", "poker", resume=True)
    resumed.log_step(metrics(2))
    resumed.close()
    assert [row.step for row in read_metrics(resumed.metrics_path)] == [1, 2]


def test_resuming_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run to resume in .*khun"):
        RunLog.create(tmp_path, "khun", "poker", resume=True)
    assert not (tmp_path / "khun").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b"])
def test_a_name_does_not_leave_the_output_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="can't be named"):
        RunLog.create(tmp_path, name, "poker")


def test_an_output_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunLogError, match=r"can't write .*runs.*: Not a directory"):
        RunLog.create(tmp_path / "runs", "kuhn", "poker")


def test_the_configuration_can_be_read_back_as_it_was_resolved(log: RunLog) -> None:
    config = RunConfig(name="run", num_steps=3, output_dir=Path("elsewhere"))
    log.write_config(config)
    kept = tomllib.loads(log.config_path.read_text())
    assert "wandb_project" not in kept  # it is None
    assert RunConfig.model_validate(kept) == config


def test_adapters_sort_by_version(log: RunLog) -> None:
    assert log.adapter_path(12) == log.folder / "adapters" / "v000012.safetensors"


def test_every_step_is_one_line_on_disk_when_it_was_logged(log: RunLog) -> None:
    for number in (1, 2):
        log.log_step(metrics(number))
        assert log.metrics_path.read_bytes().count(b"\n") == number
    assert read_metrics(log.metrics_path) == [metrics(1), metrics(2)]


def test_numbers_that_are_not_finite_are_nan_again(log: RunLog) -> None:
    log.log_step(metrics(1, loss=float("inf")))
    (row,) = read_metrics(log.metrics_path)
    assert row.values["train/loss"] != row.values["train/loss"]


def test_a_line_torn_by_a_crash_is_not_read_and_spoils_nothing_after_it(log: RunLog) -> None:
    log.log_step(metrics(1))
    log.close()
    with log.metrics_path.open("ab") as file:
        file.write(b'{"step": 2, "vers')
    assert read_metrics(log.metrics_path) == [metrics(1)]
    again = RunLog(log.folder)
    again.log_step(metrics(2))
    again.close()
    assert read_metrics(log.metrics_path) == [metrics(1), metrics(2)]


def test_a_torn_line_may_be_long_or_all_there_is(log: RunLog) -> None:
    for whole in (b"", b"\n", b'{"a":1}\n', b"y" * 100_000 + b"\n"):
        log.metrics_path.write_bytes(whole + b"x" * 200_000)
        writer = RunLog(log.folder)
        writer.log_step(metrics(1))
        writer.close()
        assert log.metrics_path.read_bytes().startswith(whole + b'{"step":1,')


def test_a_damaged_line_in_the_middle_is_named(log: RunLog) -> None:
    log.metrics_path.write_bytes(b"{}}\n{}\n")
    with pytest.raises(RunLogError, match=r"line 1 of .*metrics\.jsonl is damaged"):
        read_metrics(log.metrics_path)


def test_steps_taken_again_after_resuming_replace_the_first_ones(log: RunLog) -> None:
    for number, loss in [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.4)]:
        log.log_step(metrics(number, loss))
    assert read_metrics(log.metrics_path) == [metrics(1, 0.1), metrics(2, 0.4)]


def test_trees_are_kept_whole_with_errors_and_versions_and_without_tokens(log: RunLog) -> None:
    log.write_results(4, [tree()])
    (row,) = read_rollouts(log.rollouts_path)
    assert (row.batch, row.tree.id, row.tree.error) == (4, "0", "Traceback: boom")
    (child,) = row.tree.children
    assert (child.id, child.group, child.artifact, child.rewards) == ("0/0/0", "g", "2 + 3?", {"Solver": 1.0})
    (kept,) = child.steps
    assert kept.prompt == ({"role": "user", "content": "2 + 3?"},)
    assert (kept.text, kept.reward, kept.advantage, kept.spans) == ("5", 1.0, 0.5, (PolicySpan(0, 2, 7),))
    assert (kept.prompt_tokens, kept.completion_tokens) == (3, 2)
    assert kept.completion_token_ids is None
    assert kept.completion_logprobs is None


def test_who_is_unscored_is_kept_and_has_neither_reward_nor_advantage(log: RunLog) -> None:
    unread = tree()
    unread.children[0].rollout.leave_unscored("Solver")
    log.write_results(4, [unread])
    (row,) = read_rollouts(log.rollouts_path)
    (child,) = row.tree.children
    assert (child.unscored, child.rewards, child.advantages) == (("Solver",), {}, {})
    assert [(kept.text, kept.reward, kept.advantage) for kept in child.steps] == [("5", None, None)]


def test_a_file_from_before_there_was_such_a_field_is_read(log: RunLog) -> None:
    log.write_results(4, [tree()])
    line = json.loads(log.rollouts_path.read_bytes())
    for row in (line["tree"], *line["tree"]["children"]):
        assert row.pop("unscored") == []
    log.rollouts_path.write_text(json.dumps(line) + "\n")
    (read,) = read_rollouts(log.rollouts_path)
    assert (read.tree.unscored, read.tree.children[0].rewards) == ((), {"Solver": 1.0})


def test_a_tree_played_again_after_resuming_replaces_the_first_one(log: RunLog) -> None:
    first, again, other = (replace(tree(), group=group) for group in ("first", "again", "other"))
    log.write_results(4, [first])
    log.write_results(5, [other])
    log.write_results(4, [other], evaluation=True)
    log.write_results(4, [again])
    rows = [(row.batch, row.evaluation, row.tree.group) for row in read_rollouts(log.rollouts_path)]
    assert rows == [(5, False, "other"), (4, True, "other"), (4, False, "again")]


def test_tokens_and_logprobs_are_kept_when_asked(tmp_path: Path) -> None:
    log = RunLog.create(tmp_path, "run", "task", tokens=True)
    log.write_results(1, [tree()])
    log.close()
    (row,) = read_rollouts(log.rollouts_path)
    (kept,) = row.tree.children[0].steps
    assert kept.prompt_token_ids == (1, 2, 3)
    assert (kept.completion_token_ids, kept.completion_logprobs) == ((4, 5), (-0.5, -0.25))


class Board:
    def __repr__(self) -> str:
        return "Board(x)"


def test_whatever_an_episode_left_can_be_written(log: RunLog) -> None:
    itself: list[object] = []
    itself.append(itself)
    rollout = Rollout(
        "0",
        "game",
        artifact=Board(),
        meta={"huge": 10**30, "position": {(0, 1): "x"}, "nan": float("nan")},
        extras={"itself": itself},
        steps=[step("half a pair: \ud800, a line\nand \x1b[31m")],
        rewards={"Solver": float("nan")},
    )
    log.write_results(1, [GenerateResult(rollout)])
    (row,) = read_rollouts(log.rollouts_path)
    assert row.tree.artifact == "Board(x)"
    assert row.tree.meta == {"huge": 10**30, "position": {"(0, 1)": "x"}, "nan": None}
    assert row.tree.extras == "{'itself': [[...]]}"
    assert row.tree.steps[0].text == "half a pair: \\ud800, a line\nand \x1b[31m"
    assert row.tree.rewards == {"Solver": None}


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full to write to")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = RunLog(tmp_path)
    message = r"can't write .*metrics\.jsonl: No space left on device; free some space and resume the run"
    with pytest.raises(RunLogError, match=message):
        log.log_step(metrics(1))
    log.close()


def test_a_line_that_does_not_fit_leaves_no_half_of_itself(log: RunLog) -> None:
    log.log_step(metrics(1))
    with (
        files_of_at_most(log.metrics_path.stat().st_size + 10),
        pytest.raises(RunLogError, match="can't write"),
    ):
        log.log_step(metrics(2))
    log.log_step(metrics(3))
    assert read_metrics(log.metrics_path) == [metrics(1), metrics(3)]


def test_reading_a_run_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunLogError, match=r"can't read .*metrics\.jsonl: No such file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_the_last_tree_is_found_from_the_end(log: RunLog) -> None:
    assert read_last_rollouts(log.rollouts_path) is None
    log.rollouts_path.write_bytes(b"")
    assert read_last_rollouts(log.rollouts_path) is None
    log.write_results(1, [tree("0"), tree("1", "long " * 40_000)])
    last = read_last_rollouts(log.rollouts_path)
    assert last is not None
    assert (last.tree.id, last.tree.children[0].steps[0].text) == ("1", "long " * 40_000)
    with log.rollouts_path.open("ab") as file:
        file.write(b'{"batch": 2, "tr')  # as it looks while another process is writing
    assert read_last_rollouts(log.rollouts_path) == last


def test_a_run_in_which_nothing_was_played_leaves_its_name_free(tmp_path: Path):
    failed = RunLog.create(tmp_path, "night", "debate")
    failed.write_config(RunConfig())
    failed.discard_if_nothing_was_played()
    assert not failed.folder.exists()
    played = RunLog.create(tmp_path, "night", "debate")
    played.write_results(0, [GenerateResult(Rollout("b0", "debate"))])
    played.close()
    played.discard_if_nothing_was_played()
    assert played.rollouts_path.exists()
