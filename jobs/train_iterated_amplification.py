"""Train who splits questions, who answers the parts and who puts them together, by what a person says of the result.

selfplay train iterated_amplification                                      # nobody is asked, an oracle stands in
selfplay train iterated_amplification --human http --batch-size 4          # a page in the browser
selfplay train iterated_amplification --human terminal --human-timeout 60  # here
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.human.person import Person
from selfplay_ray.human.service import HumanKind, human_at_hand
from selfplay_ray.tasks.iterated_amplification import IteratedAmplificationArena


class IteratedAmplificationConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(8, ge=1)
    """Amplified answers per training step, each of which is rated."""
    group_size: int = Field(4, ge=2)
    """Amplified answers to each question, which are compared with each other."""
    distillations: int = Field(4, ge=2)
    """Answers to the whole question that learn from the amplified one."""
    human: HumanKind = "none"
    """Who rates: a person in a browser, one at this terminal, or a computed oracle."""
    human_timeout: float = Field(120.0, gt=0)
    """Seconds that a person has for a question; after that it is an abstention."""
    human_host: str = "127.0.0.1"
    """Where the desk listens: an address of this machine that the workers reach. It asks for a token everywhere."""
    human_port: int = Field(0, ge=0, le=65535)
    """The desk's port; 0 is any that is free."""


def make_arena(
    config: IteratedAmplificationConfig, person: Person | None = None
) -> IteratedAmplificationArena:
    """What is trained, or evaluated; without a person, the oracle rates."""
    return IteratedAmplificationArena(
        config.batch_size, person, group_size=config.group_size, distillations=config.distillations
    )


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(IteratedAmplificationConfig, argv, "selfplay train iterated_amplification")
    with human_at_hand(config.human, config.human_timeout, config.human_host, config.human_port) as person:
        # A live view and a person's lines would write over each other.
        live = False if config.human == "terminal" else None
        train(make_arena(config, person), config, "iterated_amplification", live=live)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
