"""What episodes are played on: topics, questions, programs, kept in bounded stores that can be sampled."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from selfplay_ray.errors import ConfigError
from selfplay_ray.seeds import derive_rng


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something to play on; drawn in proportion to ``weight`` where the sampling is weighted."""

    id: str
    data: Any
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ConfigError(
                f"artifact {self.id!r} has weight {self.weight}; it must be 0 or more, and finite"
            )


class ArtifactStore:
    """Artifacts by id, at most ``max_size`` of them: the oldest goes when another comes.

    Adding an id again replaces the artifact and makes it the newest.
    """

    def __init__(self, max_size: int | None = None, seed: int = 0) -> None:
        if max_size is not None and max_size < 1:
            raise ConfigError(
                f"an artifact store of max_size {max_size} can hold nothing; give 1 or more, or None"
            )
        self.max_size = max_size
        self.seed = seed
        self._artifacts: dict[str, Artifact] = {}  # oldest first
        self._draws = 0

    def add(self, artifact: Artifact) -> None:
        self._artifacts.pop(artifact.id, None)
        self._artifacts[artifact.id] = artifact
        if self.max_size is not None and len(self._artifacts) > self.max_size:
            del self._artifacts[next(iter(self._artifacts))]

    def get(self, artifact_id: str) -> Artifact | None:
        return self._artifacts.get(artifact_id)

    def count(self) -> int:
        return len(self._artifacts)

    def __len__(self) -> int:
        return len(self._artifacts)

    def __iter__(self) -> Iterator[Artifact]:
        return iter(self._artifacts.values())

    def sample(self, k: int = 1, weighted: bool = False, key: str | None = None) -> list[Artifact]:
        """Draw ``k`` artifacts with replacement, uniformly or in proportion to their weights.

        The same ``key`` draws the same from the same contents; without one, each call draws anew, in an order
        fixed by the store's seed.

        Raises:
            ConfigError: there is nothing to draw from.
        """
        artifacts = list(self._artifacts.values())
        if not artifacts or (weighted and not any(artifact.weight for artifact in artifacts)):
            raise ConfigError(
                "an artifact store has nothing to sample from: add artifacts of weight above 0 first"
            )
        if key is None:
            self._draws += 1
            key = f"draw {self._draws}"
        weights = [artifact.weight for artifact in artifacts] if weighted else None
        return derive_rng(self.seed, key).choices(artifacts, weights, k=k)

    def sample_one(self, weighted: bool = False, key: str | None = None) -> Artifact:
        return self.sample(1, weighted, key)[0]

    def fork(self, seed: int) -> Self:
        """A store of the same artifacts that draws by ``seed`` from the beginning, and goes its own way from here."""
        fork = copy.copy(self)
        fork.seed, fork._draws, fork._artifacts = seed, 0, dict(self._artifacts)
        return fork

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep. The artifacts' data must be JSON for that."""
        artifacts = [[artifact.id, artifact.data, artifact.weight] for artifact in self]
        return {"artifacts": artifacts, "draws": self._draws, "max_size": self.max_size, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._artifacts = {name: Artifact(name, data, weight) for name, data, weight in state["artifacts"]}
        self._draws, self.max_size, self.seed = state["draws"], state["max_size"], state["seed"]
