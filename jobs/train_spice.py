"""Train a Challenger that asks about what it reads, and Reasoners that answer without having read it.

selfplay train spice --num-steps 30
selfplay train spice --num-steps 30 --corpus notes.txt
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.errors import ConfigError
from selfplay_ray.tasks.spice import CORPUS, SpiceArena


class SpiceConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(16, ge=1)
    """Questions per training step."""
    group_size: int = Field(4, ge=2)
    """Questions from each passage, which are compared with each other."""
    n_reasoners: int = Field(8, ge=2)
    """Reasoners that answer each question."""
    corpus: Path | None = None
    """A text file, read passage by passage, with blank lines between them; a few short ones of facts when unset."""


def make_arena(config: SpiceConfig) -> SpiceArena:
    """What is trained, or evaluated."""
    return SpiceArena(
        config.batch_size, config.group_size, n_reasoners=config.n_reasoners, corpus=corpus(config.corpus)
    )


def corpus(path: Path | None) -> str:
    """The text to read.

    Raises:
        ConfigError: the file can't be read.
    """
    if path is None:
        return CORPUS
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the corpus {path} can't be read: {error}") from None


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(SpiceConfig, argv, "selfplay train spice")
    train(make_arena(config), config, "spice")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
