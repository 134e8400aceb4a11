"""`selfplay export`: what it writes, what it says, and one sentence for everything it can't do."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
from pathlib import Path

import mlx_lm
import pytest

from selfplay_ray import cli
from selfplay_ray.benchmarks.noise import noisy_weights
from selfplay_ray.config import RunConfig
from selfplay_ray.lora import LoRASettings, attach_lora, load_adapter, read_adapter, save_adapter
from selfplay_ray.models import load_model
from selfplay_ray.runlog.folder import RunLog

SETTINGS = LoRASettings(rank=2)


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunLog:
    """A run of the tiny model that has left versions 1 and 2."""
    log = RunLog.create(tmp_path_factory.mktemp("export") / "runs", "mine", "task")
    log.write_config(RunConfig(model_path=str(tiny)))
    log.adapters_dir.mkdir()
    model, _ = load_model(tiny)
    attach_lora(model, SETTINGS, seed=0)
    shapes = {name: value.shape for name, value in read_adapter(model).items()}
    for version in (1, 2):
        save_adapter(log.adapter_path(version), noisy_weights(shapes, version), SETTINGS, version)
    return log


def said(capsys: pytest.CaptureFixture[str], code: int, *argv: object) -> str:
    """Run ``selfplay export`` and return the one line it says."""
    assert cli.main(["export", *map(str, argv)]) == code
    captured = capsys.readouterr()
    (line,) = (captured.err if code else captured.out).splitlines()
    return line.removeprefix("selfplay: ")


def test_the_last_adapter_of_a_run_in_pefts_format(run: RunLog, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert said(capsys, 0, run.folder, out) == (
        f"version 2 (rank 2, scale 4) is in {out}, a LoRA adapter in PEFT's format"
    )
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_whole_model_of_another_version(run: RunLog, tiny: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    line = said(capsys, 0, run.folder, out, "--version", 1, "--fuse")
    assert line == f"{tiny} with version 1 (rank 2, scale 4) is in {out}, a whole model"
    model, _ = mlx_lm.load(str(out))
    assert not any(name.endswith(("lora_a", "lora_b")) for name in read_adapter(model))


def test_a_file_lies_in_its_run_or_is_told_its_model(run: RunLog, tiny: Path, tmp_path: Path, capsys):
    assert "version 1 " in said(capsys, 0, run.adapter_path(1), tmp_path / "of-a-run", "--fuse")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(run.adapter_path(1).read_bytes())
    assert said(capsys, 2, alone, tmp_path / "out", "--fuse") == (
        f"{alone} lies in no run's folder, so that its model isn't known; name it with --model"
    )
    assert "version 1 " in said(capsys, 0, alone, tmp_path / "as-peft")
    assert "version 1 " in said(capsys, 0, alone, tmp_path / "fused", "--fuse", "--model", tiny)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["runs/none", "out"],
            "there is no run and no adapter at runs/none; give a run's folder (runs/NAME) or an",
        ),
        (["{run}", "out", "--version", "7"], "the run in {run} has no version 7; it has 1-2"),
        (["{run}", "{run}"], "{run} exists already; give a folder that isn't there yet"),
        (["{run}", "out", "--version", "last"], "--version: invalid int value: 'last'"),
        (["{run}", "out", "--fused"], "unknown flag --fused; did you mean --fuse?"),
        (["{run}"], "the following arguments are required: OUT"),
        (["{run}/config.toml", "out"], "{run}/config.toml is no adapter saved by selfplay-ray, or is torn"),
        (["{run}", "out", "--fuse", "--model", "gone"], "unknown model 'gone'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    argv: list[str], sentence: str, run: RunLog, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = [word.format(run=run.folder) for word in argv]
    code = cli.main(["export", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("selfplay: " + sentence.format(run=run.folder))
    assert code == (1 if "torn" in sentence or "model 'gone'" in sentence else 2)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_not_taken_a_step(tmp_path: Path, capsys):
    log = RunLog.create(tmp_path, "new", "task")
    log.write_config(RunConfig())
    assert said(capsys, 1, log.folder, tmp_path / "out") == (
        f"the run in {log.folder} has no adapter yet; the first is there after its first step, or where all "
        "weights are trained after its first checkpoint"
    )


def test_a_torn_adapter(run: RunLog, tmp_path: Path, capsys):
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(run.adapter_path(1).read_bytes()[:-50])
    assert "is no adapter saved by selfplay-ray, or is torn" in said(capsys, 1, torn, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_exported_is_what_the_file_holds(run: RunLog, tmp_path: Path, capsys):
    said(capsys, 0, run.folder, tmp_path / "out")
    from safetensors.numpy import load_file

    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, value in load_adapter(run.adapter_path(2)).weights.items():
        theirs = f"base_model.model.{name[:-1]}{name[-1].upper()}.weight"
        assert (written[theirs] == value.T).all()
