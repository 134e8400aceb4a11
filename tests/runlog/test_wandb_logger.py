"""Weights & Biases in its offline mode, for real; and its absence where nobody asked for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.wandb_logger import wandb_logger


def run_python(program: str, folder: Path, **environment: str) -> str:
    """In a process of its own: wandb leaves threads, and what is imported stays imported."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PATH": "", "HOME": str(folder), "PYTHONPATH": ":".join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_project_wandb_is_not_even_imported(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from selfplay_ray.config import RunConfig
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.wandb_logger import wandb_logger
assert wandb_logger(RunConfig(), RunLog(Path("."))) is None
print(sorted(name for name in sys.modules if name.split(".")[0] == "wandb"))
"""
    assert run_python(program, tmp_path) == "[]\n"


def test_offline_the_run_lies_in_its_folder(tmp_path: Path) -> None:
    program = """
import json, wandb
from pathlib import Path
from selfplay_ray.config import RunConfig
from selfplay_ray.runlog.metrics import step_metrics
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.types import RoleStats, RolloutGroup
from selfplay_ray.runlog.wandb_logger import wandb_logger
run = RunLog.create(Path("runs"), "kuhn", "poker")
logger = wandb_logger(RunConfig(wandb_project="selfplay", seed=7), run)
group = RolloutGroup("g", 1, (), {"Solver": RoleStats(2, 0.25, 0.5)}, {})
for step, loss in [(1, 0.75), (2, 0.7), (1, 0.5)]:  # it has gone back
    logger.log_step(step_metrics(
        step=step, version=1, time=0.0, groups=[group], records=[], dropped_stale=0, train={"loss": loss},
        tokens_per_second=1.0, learner_wait_seconds=0.0, engine_wait_seconds=0.0))
summary = dict(wandb.run.summary)
print(json.dumps([wandb.run.name, wandb.run.project, wandb.run.config["seed"], summary["reward/Solver"],
                  summary["train/loss"], summary["step"]]))
logger.close()
"""
    printed = run_python(program, tmp_path, WANDB_MODE="offline")
    assert json.loads(printed) == ["kuhn", "selfplay", 7, 0.25, 0.5, 1]
    (journal,) = (tmp_path / "runs" / "kuhn").glob("wandb/offline-run-*/*.wandb")
    assert b"reward/Solver" in journal.read_bytes()


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # how Python itself marks a module that can't be imported
    with pytest.raises(ConfigError, match=r"pip install 'selfplay-ray\[wandb\]'"):
        wandb_logger(RunConfig(wandb_project="selfplay"), RunLog(tmp_path))


def test_without_an_api_key_the_refusal_says_what_to_do(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.wandb_logger import wandb_logger
try:
    wandb_logger(RunConfig(wandb_project="selfplay"), RunLog(Path(".")))
except ConfigError as error:
    print(error)
"""
    printed = run_python(program, tmp_path, WANDB_MODE="online", WANDB_BASE_URL="http://127.0.0.1:9")
    assert "refused project 'selfplay'" in printed
    assert "WANDB_MODE=offline" in printed
