"""How many episodes may fail before a run stops and says why."""

from __future__ import annotations

from selfplay_ray.errors import ErrorBudgetExceeded
from selfplay_ray.types import Rollout

BENEFIT_OF_DOUBT = 20
"""Shares are taken of at least this many episodes, so that one early failure doesn't end a run."""


class ErrorBudget:
    """Counts episodes and failures; ``share`` is the share of failures that is tolerated."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.finished = 0
        self.failed = 0

    def count(self, rollout: Rollout) -> None:
        """Take note of a finished rollout.

        Raises:
            ErrorBudgetExceeded: too many have failed; says how the last one did.
        """
        self.finished += 1
        if rollout.error is None:
            return
        self.failed += 1
        if self.failed > self.share * max(self.finished, BENEFIT_OF_DOUBT):
            raise ErrorBudgetExceeded(
                f"{self.failed} of {self.finished} episodes failed, more than error_budget={self.share:g} allows; "
                f"the last was {rollout.episode_type!r} ({rollout.id}):\n{rollout.error.rstrip()}"
            )
