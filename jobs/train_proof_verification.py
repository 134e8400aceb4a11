"""Train a Prover that works sums out line by line, and a Verifier of its lines.

selfplay train proof_verification --num-steps 30
selfplay train proof_verification --num-steps 30 --terms 4 --products
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.proof_verification import ProofVerificationArena


class ProofVerificationConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(32, ge=1)
    """Proofs per training step."""
    group_size: int = Field(8, ge=2)
    """Proofs of each statement, which are compared with each other."""
    verdicts: int = Field(3, ge=2)
    """Times that the Verifier judges each step."""
    terms: int = Field(3, ge=2, le=8)
    """Numbers in a statement; a proof of it has a line less."""
    products: bool = False
    """Whether statements multiply, too."""


def make_arena(config: ProofVerificationConfig) -> ProofVerificationArena:
    """What is trained, or evaluated."""
    return ProofVerificationArena(
        config.batch_size,
        config.group_size,
        verdicts=config.verdicts,
        terms=config.terms,
        products=config.products,
    )


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(ProofVerificationConfig, argv, "selfplay train proof_verification")
    train(make_arena(config), config, "proof_verification")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
