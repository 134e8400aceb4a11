"""How requests are spread over several engines or endpoints, and how long one that failed is left alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

from selfplay_ray.errors import ConfigError

IMBALANCE = 8
"""How many more requests than the idlest one may have before those of one prompt are spread."""


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """At most ``attempts``, all within ``deadline`` seconds; waits between them grow from ``first_delay`` to
    ``longest_delay`` seconds, each times a random number from 0.5 to 1.

    Raises:
        ConfigError: a number that leaves no attempt, or no time for it.
    """

    attempts: int = 5
    deadline: float = 600.0
    first_delay: float = 0.5
    longest_delay: float = 8.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.deadline, self.longest_delay) <= 0 or self.first_delay < 0:
            raise ConfigError(
                f"with {self} nothing can be asked; attempts, deadline and delays must be above 0"
            )

    def delay(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure."""
        longest = min(self.longest_delay, self.first_delay * 2.0 ** (failures - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - so that clients don't come back all at once
