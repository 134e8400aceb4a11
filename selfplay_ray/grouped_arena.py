"""The usual arrangement of a batch: several episodes on one artifact, credited with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.credit import GRPOCredit
from selfplay_ray.types import EpisodeRequest


class GroupedArena(Arena):
    """Plays ``group_size`` episodes of type ``episode_type`` on each artifact; a batch that isn't a multiple of it has
    fewer on its last. Those on one artifact are a group: by default each is credited with how much better than the
    group it did, over their standard deviation (Shao et al. 2024, DeepSeekMath, section 4.1: GRPO).

    Override :meth:`draw_artifact`, or :meth:`draw_artifacts` where those of a batch aren't drawn one by one.
    """

    def __init__(self, episode_type: str, batch_size: int, group_size: int, **options: Any) -> None:
        options.setdefault("credit_assigner", GRPOCredit(normalize=True))
        super().__init__(batch_size=batch_size, **options)
        self.episode_type = episode_type
        self.group_size = group_size

    def draw_artifact(self) -> Any:
        """What a group is about, by chance from ``self.rng``."""
        raise NotImplementedError(
            f"{type(self).__name__} must override draw_artifact() to say what the next group is about"
        )

    def draw_artifacts(self, count: int) -> Sequence[Any]:
        """What the ``count`` groups of a batch are about."""
        return [self.draw_artifact() for _ in range(count)]

    def describe(self, artifact: Any) -> str:
        """A few words for ``artifact``, for the group's name."""
        return str(artifact)

    def get_batch(self) -> list[EpisodeRequest]:
        artifacts = self.draw_artifacts(-(-self.batch_size // self.group_size))
        names = [f"{number}: {self.describe(artifact)}" for number, artifact in enumerate(artifacts)]
        groups = [index // self.group_size for index in range(self.batch_size)]
        return [EpisodeRequest(self.episode_type, artifacts[group], group=names[group]) for group in groups]
