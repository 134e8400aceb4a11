"""`selfplay eval`: what it plays and says on a tiny model, what it leaves, and one sentence for all it can't do."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from selfplay_ray import cli
from selfplay_ray.arena import Arena
from selfplay_ray.benchmarks.noise import noisy_weights
from selfplay_ray.bootstrap import Estimate
from selfplay_ray.evaluation import Evaluation
from selfplay_ray.inference.peft import save_peft
from selfplay_ray.jobs import evaluate
from selfplay_ray.jobs.evaluation_report import Sheet, as_json, as_table, notes
from selfplay_ray.jobs.train_proposer_solver import ProposerSolverConfig
from selfplay_ray.lora import LoRASettings, attach_lora, read_adapter, save_adapter
from selfplay_ray.models import load_model
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.rollouts import read_rollouts
from selfplay_ray.types import GenerateResult, Rollout

SETTINGS = LoRASettings(rank=2)


@pytest.fixture(scope="module")
def shapes(tiny: Path) -> dict[str, tuple[int, ...]]:
    model, _ = load_model(tiny)
    attach_lora(model, SETTINGS, seed=0)
    return {name: value.shape for name, value in read_adapter(model).items()}


@pytest.fixture
def run(tiny: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> RunLog:
    """A run of the tiny model that has left version 0, which has no effect, and version 2, which has."""
    log = RunLog.create(tmp_path / "runs", "mine", "task")
    log.write_config(ProposerSolverConfig(model_path=str(tiny), n_solver_rollouts=2, lora_rank=2, seed=7))
    log.adapters_dir.mkdir()
    noise = noisy_weights(shapes, 2)
    without = {name: value * (not name.endswith("lora_b")) for name, value in noise.items()}
    save_adapter(log.adapter_path(0), without, SETTINGS, 0)
    save_adapter(log.adapter_path(2), noise, SETTINGS, 2)
    return log


def said(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What ``selfplay eval proposer_solver`` prints."""
    assert cli.main(["eval", "proposer_solver", "--episodes", "4", *map(str, argv)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one sentence it says."""
    assert cli.main(["eval", *map(str, argv)]) in (1, 2)
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    return line.removeprefix("selfplay: ")


def what_was_said(run: RunLog, name: str) -> list[Any]:
    """The texts in the trees, and which were greedy, trainable, of which version."""
    rows = list(read_rollouts(run.folder / "evaluations" / f"{name}.jsonl"))
    assert all(row.evaluation for row in rows)
    return [
        (
            row.batch,
            row.tree.id,
            row.tree.artifact,
            [(step.text, step.temperature) for step in row.tree.steps],
        )
        for row in rows
    ]


def test_the_last_adapter_against_the_base_model(run: RunLog, capsys):
    out = said(capsys, "--run", run.folder)
    lines = out.splitlines()
    assert lines[0].split() == ["mean", "reward", "base", "v000002", "difference"]
    assert [line.split()[0] for line in lines[1:5]] == ["sampled", "Proposer", "greedy", "Proposer"]
    assert (
        "4 episodes, the same for all; 95 % intervals by bootstrap over 2 independent observations" in lines
    )
    assert lines[-1] == f"what was said is in {run.folder / 'evaluations'}"
    base, tuned = what_was_said(run, "base-sampled"), what_was_said(run, "v000002-sampled")
    assert [(batch, name) for batch, name, *_ in tuned] == [(2, f"eval.{index}") for index in range(4)]
    assert [row[2] for row in base] == [row[2] for row in tuned]  # the same questions
    assert [row[3] for row in base] != [row[3] for row in tuned]  # other answers
    greedy = what_was_said(run, "v000002-greedy")
    assert {temperature for *_, steps in greedy for _, temperature in steps} == {0.0}
    assert not run.replay_path.exists()


def test_an_adapter_without_effect_says_what_the_base_model_says(run: RunLog, capsys):
    said(capsys, "--run", run.folder, "--version", 0)
    for kind in ("sampled", "greedy"):
        assert what_was_said(run, f"base-{kind}") == what_was_said(run, f"v000000-{kind}")  # to the last word


def test_as_json_and_the_same_at_every_call(run: RunLog, capsys):
    argv = ["--run", run.folder, "--json", "--sampled"]
    report = json.loads(said(capsys, *argv))
    assert json.loads(said(capsys, *argv)) == report
    assert (report["task"], report["seed"], report["run"]) == ("proposer_solver", 7, str(run.folder))
    assert (report["confidence"], report["resamples"]) == (0.95, 10_000)
    (sheet,) = report["evaluations"]
    assert (sheet["greedy"], sheet["episodes"], sheet["independent"]) == (False, 4, 2)
    assert list(sheet["policies"]) == ["base", "v000002"]
    assert sheet["policies"]["v000002"]["version"] == 2
    assert sheet["policies"]["base"]["failed"] == 0
    mean = sheet["policies"]["base"]["rewards"]["Proposer"]["mean"]
    assert mean <= sheet["policies"]["base"]["rewards"]["Proposer"]["high"]
    assert sheet["difference"]["rewards"]["Proposer"]["clusters"] == 2


def test_an_adapter_of_another_model_is_not_played_as_if_it_were_ones_own(run: RunLog, tiny: Path, capsys):
    other = RunLog.create(run.folder.parent, "other", "task")
    other.write_config(ProposerSolverConfig(model_path="org/another"))
    other.adapters_dir.mkdir()
    shutil.copy(run.adapter_path(2), other.adapter_path(1))
    against = ["--run", run.folder, "--against", other.folder, "--greedy"]
    line = refused(capsys, "proposer_solver", *against)
    assert f"v000001.safetensors was trained on org/another, and the evaluation plays {tiny}" in line
    assert said(capsys, *against, "--model-path", tiny).splitlines()[0].split()[2] == "v000001"


def test_another_seed_asks_other_questions(run: RunLog, capsys):
    said(capsys, "--run", run.folder, "--greedy")
    before = what_was_said(run, "base-greedy")
    said(capsys, "--run", run.folder, "--greedy", "--seed", 8)
    assert [row[2] for row in what_was_said(run, "base-greedy")] != [row[2] for row in before]


def test_adapters_from_anywhere_against_each_other(run: RunLog, shapes, tmp_path: Path, capsys):
    """A folder of PEFT's with the same weights as the run's last adapter: no difference at all."""
    folder = tmp_path / "from-peft"
    save_peft(folder, noisy_weights(shapes, 2), SETTINGS.scale, None)
    flags = ["--adapter", run.adapter_path(2), "--against", folder, "--run", run.folder, "--json", "--greedy"]
    (sheet,) = json.loads(said(capsys, *flags))["evaluations"]
    assert list(sheet["policies"]) == ["from-peft", "v000002"]
    assert [row[3] for row in what_was_said(run, "from-peft-greedy")] == [
        row[3] for row in what_was_said(run, "v000002-greedy")
    ]


def test_adapters_of_one_name_and_of_a_larger_rank(run: RunLog, tiny: Path, shapes, capsys):
    wide = {n: (*s[:-1], 16) if n.endswith("lora_a") else (16, *s[1:]) for n, s in shapes.items()}
    other = run.folder.parent / run.adapter_path(2).name
    save_adapter(other, noisy_weights(wide, 1), LoRASettings(rank=16), 5)
    flags = ["--model-path", tiny, "--adapter", other, "--against", run.folder, "--json", "--greedy"]
    report = json.loads(said(capsys, *flags))
    assert report["run"] is None
    assert list(report["evaluations"][0]["policies"]) == ["v000002", "v000002-2"]
    assert report["adapters"] == {"v000002": str(run.adapter_path(2)), "v000002-2": str(other)}


def test_a_policy_that_is_all_weights_has_an_engine_of_its_own(run: RunLog, tiny: Path, capsys):
    """Weights that are the base model's say what it says, those of another model something else."""
    model, _ = load_model(tiny)
    attach_lora(model, LoRASettings(rank=0), seed=0)
    weights = read_adapter(model)
    kept = run.folder / "checkpoints" / "v000004" / "adapter.safetensors"
    kept.parent.mkdir(parents=True)
    for path in run.adapters_dir.iterdir():
        path.unlink()
    save_adapter(kept, weights, LoRASettings(rank=0), 4)
    said(capsys, "--run", run.folder)
    for kind in ("sampled", "greedy"):
        base, whole = what_was_said(run, f"base-{kind}"), what_was_said(run, f"v000004-{kind}")
        assert [row[1:] for row in base] == [row[1:] for row in whole]
    save_adapter(kept, {name: -value for name, value in weights.items()}, LoRASettings(rank=0), 4)
    said(capsys, "--run", run.folder, "--greedy")
    base, whole = what_was_said(run, "base-greedy"), what_was_said(run, "v000004-greedy")
    assert [row[3] for row in base] != [row[3] for row in whole]


def test_the_base_model_alone(tiny: Path, capsys):
    lines = said(capsys, "--model-path", tiny, "--greedy").splitlines()
    assert lines[0].split() == ["mean", "reward", "base"]


# What it can't do


def test_an_unknown_task(capsys):
    assert refused(capsys, "chess").startswith("unknown task 'chess'; known: ")
    assert refused(capsys, "--run", "x") == "the following arguments are required: TASK"
    assert refused(capsys).startswith("which task? known: ")


def test_no_such_run(tmp_path: Path, capsys):
    sentence = refused(capsys, "proposer_solver", "--run", tmp_path / "none")
    assert sentence.startswith(f"there is no run and no adapter at {tmp_path / 'none'}")


def test_no_adapter_yet(run: RunLog, capsys):
    for path in run.adapters_dir.iterdir():
        path.unlink()
    sentence = refused(capsys, "proposer_solver", "--run", run.folder)
    assert sentence.startswith(f"the run in {run.folder} has no adapter yet")


def test_a_version_that_is_not_there(run: RunLog, capsys):
    sentence = refused(capsys, "proposer_solver", "--run", run.folder, "--version", 7)
    assert sentence == f"the run in {run.folder} has no version 7; it has 0, 2"


@pytest.mark.parametrize("flags", [[], ["--run", "RUN", "--adapter", "x"]])
def test_a_version_of_what(flags: list[str], capsys):
    sentence = refused(capsys, "proposer_solver", "--version", 7, *flags)
    assert sentence == "--version picks among a run's adapters: give --run, and no --adapter"


def test_no_such_adapter_to_compare_with(tmp_path: Path, capsys):
    sentence = refused(capsys, "proposer_solver", "--against", tmp_path / "none")
    assert sentence.startswith(f"there is no run and no adapter at {tmp_path / 'none'}")


def test_an_adapter_of_another_model(run: RunLog, shapes, capsys):
    wrong = {name: (shape[0] + 1, *shape[1:]) for name, shape in shapes.items()}
    save_adapter(run.adapter_path(3), noisy_weights(wrong, 0), SETTINGS, 3)
    sentence = refused(capsys, "proposer_solver", "--run", run.folder)
    assert sentence.startswith(f"the adapter {run.adapter_path(3)} can't be used: ")


def test_the_model_is_gone(run: RunLog, tmp_path: Path, capsys):
    sentence = refused(capsys, "proposer_solver", "--run", run.folder, "--model-path", tmp_path)
    assert sentence == f"not a model folder: {tmp_path} lacks config.json"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--episodes", "0"], "--episodes 0 is not possible: it must be at least 1"),
        (["--episodes", "few"], "--episodes: invalid int value: 'few'"),
        (["--greddy"], "unknown flag --greddy; did you mean --greedy?"),
        (["--greedy", "--sampled"], "--sampled: not allowed with argument --greedy"),
        (["--seed", "-1"], "--seed -1 is not possible: it must be greater than or equal to 0"),
    ],
)
def test_flags_that_are_wrong(flags: list[str], sentence: str, capsys):
    assert refused(capsys, "proposer_solver", *flags) == sentence


def test_nothing_came_to_an_end(tiny: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    def broken(self: Arena, *args: object) -> None:
        raise ValueError("no example today")

    monkeypatch.setattr("selfplay_ray.tasks.proposer_solver.Question.parse", broken)
    sentence = refused(capsys, "proposer_solver", "--model-path", tiny, "--episodes", 2, "--greedy")
    assert sentence == "no rollout of base has a reward; the last: ValueError: no example today"


# How it says it


def sheet(*policies: tuple[float, float, float, int], failed: int = 0, clusters: int = 40) -> Sheet:
    results = [GenerateResult(Rollout(f"eval.{index}", "say")) for index in range(clusters)]
    for result in results[:failed]:
        result.rollout.error = "Traceback\n  line 1\nValueError: \x1b[31mred\n"
    evaluations = {
        name: Evaluation(
            0, False, results, [r.rollout.id for r in results], {"Player": Estimate(*numbers)}, {}
        )
        for name, numbers in zip(("base", "v\x1b[1m"), policies, strict=False)
    }
    return Sheet(evaluations)


def cells(one: Sheet) -> list[list[str]]:
    return [[str(cell) for cell in column.cells] for column in as_table([one]).columns]


def test_numbers_are_rounded_and_an_interval_that_there_is_not_is_left_out():
    assert cells(sheet((0.1249, -0.001, 0.25, 40)))[1] == ["", "0.12 [0.00, 0.25]"]
    assert cells(sheet((1 / 3, math.nan, math.nan, 1)))[1] == ["", "0.33"]


def test_notes_say_what_failed_and_how_little_there_is():
    (about,) = notes([sheet((0, 0, 0, 40))])
    assert (
        about == "40 episodes, the same for all; 95 % intervals by bootstrap over 40 independent observations"
    )
    _, few, failures = notes([sheet((0, 0, 0, 12), failed=2)])
    assert (
        few
        == "with fewer than 30 (Player, base, sampled: 12) an interval is somewhat too narrow; --episodes plays more"
    )
    unread = sheet((0, 0, 0, 40))
    for result in unread.evaluations["base"].results[:3]:
        result.rollout.leave_unscored("Player")
    _, uncounted = notes([unread])
    assert uncounted == "base, sampled: 3 times nobody could tell what a role was worth, which doesn't count"
    _, none = notes([sheet((0, math.nan, math.nan, 1))])
    assert "(Player, base, sampled: 1) an interval can't be told from one;" in none
    assert failures == "base, sampled: 2 of 40 rollouts failed and don't count; the last: ValueError: [31mred"


def test_json_has_no_nan_and_terminals_no_escapes():
    one = sheet((0.5, math.nan, math.nan, 1))
    number = json.loads(as_json([one], {}))["evaluations"][0]["policies"]["base"]["rewards"]["Player"]
    assert number == {"mean": 0.5, "low": None, "high": None, "clusters": 1}
    assert "\x1b" not in str(as_table([sheet((0, 0, 0, 40), (0, 0, 0, 40))]).columns[2].header)


def test_every_task_says_how_its_arena_is_made():
    for task in evaluate.known_tasks().split(", "):
        job = evaluate.training_job(task)
        assert callable(job.make_arena)
        assert evaluate.get_type_hints(job.make_arena)["config"] is not None
