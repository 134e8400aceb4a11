"""How many episodes may fail before a run stops and says why."""

from __future__ import annotations

from collections import deque

from selfplay_ray.errors import ErrorBudgetExceeded
from selfplay_ray.types import Rollout

BENEFIT_OF_DOUBT = 20
"""Shares are taken of at least this many episodes, so that one early failure doesn't end a run."""

LATELY = 200
"""Shares are taken of at most this many episodes, the last ones, so that what begins to fail late is noticed soon."""


class ErrorBudget:
    """Counts episodes and failures; ``share`` is the share of failures that is tolerated of every episode type, so that
    one that always fails isn't hidden by others that don't."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.finished = 0
        self.failed = 0
        self._lately: dict[str, deque[bool]] = {}  # by episode type: whether each of the last ones has failed

    def count(self, rollout: Rollout) -> None:
        """Take note of a finished rollout.

        Raises:
            ErrorBudgetExceeded: too many have failed; says how the last one did.
        """
        lately = self._lately.setdefault(rollout.episode_type, deque(maxlen=LATELY))
        lately.append(rollout.error is not None)
        self.finished += 1
        if rollout.error is None:
            return
        self.failed += 1
        failed = sum(lately)
        if failed > self.share * max(len(lately), BENEFIT_OF_DOUBT):
            of = f"{len(lately)}" if len(lately) < LATELY else f"the last {LATELY}"
            raise ErrorBudgetExceeded(
                f"{failed} of {of} episodes of type {rollout.episode_type!r} failed, more than "
                f"error_budget={self.share:g} allows; the last was {rollout.id}:\n{rollout.error.rstrip()}"
            )
