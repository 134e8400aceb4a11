"""An evaluation within a run: episodes beside the batches, which nothing of the run's pace, credit or journal sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from selfplay_ray.evaluation import ID_PREFIX
from selfplay_ray.types import EpisodeRequest, GenerateResult


@dataclass(slots=True)
class EvaluationInFlight:
    """What policy ``version`` plays, and the results that are in, by the ids of their requests."""

    version: int
    requests: Sequence[EpisodeRequest]
    results: dict[str, GenerateResult] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.results) == len(self.requests)

    def in_order(self) -> list[GenerateResult]:
        return [self.results[request.id] for request in self.requests]


def is_of_evaluation(request_id: str) -> bool:
    """Whether a request, or the root it descends from, is an evaluation's."""
    return request_id.startswith(ID_PREFIX)
