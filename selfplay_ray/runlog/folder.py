"""The folder a run leaves behind, ``runs/<name>/``: its configuration, metrics, rollouts, adapters, checkpoint."""

from __future__ import annotations

import datetime
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import msgspec
import tomli_w
from pydantic import BaseModel

from selfplay_ray.errors import ConfigError
from selfplay_ray.runlog.json_lines import JsonLines, os_errors, read_json_lines
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.runlog.rollouts import encode_tree
from selfplay_ray.types import GenerateResult

VERSION = re.compile(r"v(\d+)")
"""A policy's version, as the files and folders are named that belong to it."""


class RunLog:
    """Writes into the folder of one run.

    Every file has one writer, so that several processes may each open the folder and write their own: the one
    that trains the metrics, the one that gathers rollouts the rollouts. Files are made when first written to.

    Args:
        folder: an existing run's; ``RunLog.create`` makes a new one.
        tokens: whether rollouts keep token ids and logprobs.
    """

    def __init__(self, folder: Path, *, tokens: bool = False) -> None:
        self.folder = folder
        self._tokens = tokens
        self._metrics: JsonLines | None = None
        self._rollouts: JsonLines | None = None

    @classmethod
    def create(
        cls, output_dir: Path, name: str, task: str, *, resume: bool = False, tokens: bool = False
    ) -> Self:
        """The log of a new run of ``task``, or with ``resume`` of one that is there already.

        An empty name becomes the task, the time and four digits that tell two runs of one second apart.

        Raises:
            ConfigError: the folder holds a run already; or, resuming, there is none.
            RunLogError: the folder can't be made.
        """
        if name in {".", ".."} or "/" in name or os.sep in name:
            raise ConfigError(f"a run can't be named {name!r}, because its folder is named the same")
        folder = output_dir / (name or _fresh_name(task))
        with os_errors(folder):
            used = folder.exists() and any(folder.iterdir())
            if used and not resume:
                raise ConfigError(
                    f"{folder} holds a run already; give this one another name, resume that one, or delete it"
                )
            if resume and not used:
                raise ConfigError(f"there is no run to resume in {folder}; check the run's name")
            folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, tokens=tokens)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config_path(self) -> Path:
        return self.folder / "config.toml"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def rollouts_path(self) -> Path:
        return self.folder / "rollouts.jsonl"

    @property
    def replay_path(self) -> Path:
        return self.folder / "replay.sqlite"

    @property
    def checkpoints_dir(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapters_dir(self) -> Path:
        return self.folder / "adapters"

    @property
    def published_dir(self) -> Path:
        """Where endpoints find adapters while the run goes on."""
        return self.folder / "published"

    def adapter_path(self, version: int) -> Path:
        """Where policy ``version``'s adapter is kept."""
        return self.adapters_dir / f"v{version:06d}.safetensors"

    def adapters(self) -> dict[int, Path]:
        """Where each version's adapter is, of those there are, oldest first."""
        files = self.adapters_dir.glob("v*.safetensors")
        return dict(sorted((int(name[1]), file) for file in files if (name := VERSION.fullmatch(file.stem))))

    def write_config(self, config: BaseModel) -> None:
        """Keep the resolved configuration; what is None, which TOML can't say, is left out.

        Raises:
            RunLogError: the file can't be written; the one before it is untouched.
        """
        text = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, exclude={"resume"}))
        part = self.config_path.with_suffix(".part")
        with os_errors(self.config_path):
            part.write_text(text, encoding="utf-8")
            part.replace(self.config_path)

    def history(self, step: StepMetrics | None) -> list[StepMetrics]:
        """The steps that led to ``step``, which is the last of them even if nobody had come to log it; none for None.

        Raises:
            RunLogError: the file can't be read.
        """
        if step is None:
            return []
        logged = read_metrics(self.metrics_path) if self.metrics_path.exists() else []
        return [one for one in logged if one.step < step.step] + [step]

    def go_back(self, history: Sequence[StepMetrics]) -> None:
        """The run goes on after ``history``: forget the later steps and their adapters. It will take them again, and
        if it takes fewer, those of its last step are the last.

        Raises:
            RunLogError: a file can't be written or removed; the metrics are as they were, or gone back.
        """
        part = self.metrics_path.with_suffix(".part")
        with os_errors(self.metrics_path):
            part.write_bytes(b"".join(msgspec.json.encode(one.flat()) + b"\n" for one in history))
            part.replace(self.metrics_path)
        last = history[-1].version if history else 0
        with os_errors(self.adapters_dir):
            for version, adapter in self.adapters().items():
                if version > last:
                    adapter.unlink()

    def log_step(self, metrics: StepMetrics) -> None:
        """Append one line to ``metrics.jsonl``.

        Raises:
            RunLogError: the file can't be written.
        """
        if self._metrics is None:
            self._metrics = JsonLines(self.metrics_path)
        self._metrics.append(msgspec.json.encode(metrics.flat()))

    def write_results(
        self, batch: int, results: Iterable[GenerateResult], *, evaluation: bool = False
    ) -> None:
        """Append one line for every tree to ``rollouts.jsonl``, failed ones too; for those of an ``evaluation``,
        ``batch`` is the policy's version.

        Raises:
            RunLogError: the file can't be written.
        """
        if self._rollouts is None:
            self._rollouts = JsonLines(self.rollouts_path)
        for result in results:
            self._rollouts.append(encode_tree(batch, result, tokens=self._tokens, evaluation=evaluation))

    def discard_if_nothing_was_played(self) -> None:
        """Remove the folder of a run that failed before anything happened, so that its name is free again."""
        if not self.rollouts_path.exists() and not self.metrics_path.exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        for file in (self._metrics, self._rollouts):
            if file is not None:
                file.close()


def read_metrics(path: Path) -> list[StepMetrics]:
    """The steps of ``metrics.jsonl``, each once.

    A run that crashed and resumed from an earlier checkpoint took some steps twice: what it logged first is
    no part of its history any more.

    Raises:
        RunLogError: the file can't be read; a last line that a crash tore is left out.
    """
    history: list[StepMetrics] = []
    for row in read_json_lines(path, dict[str, float | None]):
        metrics = StepMetrics.from_flat(row)
        while history and history[-1].step >= metrics.step:
            history.pop()
        history.append(metrics)
    return history


def _fresh_name(task: str) -> str:
    time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', task)}-{time}-{secrets.token_hex(2)}"
