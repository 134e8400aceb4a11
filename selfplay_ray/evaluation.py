"""Is the policy better than it was? What an evaluation plays, and what it says, with intervals.

The same questions with the same seeds at every evaluation of a run, for every policy: requests are named
``eval.<index>`` and all chance is keyed by that. None of it is trained on, and nothing of it moves what is played
next: batches, stores, baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfplay_ray.arena import Arena
from selfplay_ray.bootstrap import Estimate, Totals, estimate_difference, estimate_mean
from selfplay_ray.errors import ConfigError
from selfplay_ray.seeds import derive_rng
from selfplay_ray.types import EpisodeRequest, GenerateResult, Rollout

EPISODES = 64
"""Root episodes of an evaluation that isn't told how many."""

ID_PREFIX = "eval."
"""What the ids of its requests begin with, and those of no others."""

Numbers = Callable[[Rollout], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a policy fared.

    ``rewards`` are keyed by role, ``metrics`` as rubrics name theirs: ``function/role``. Each is the mean over all
    rollouts of all trees that have one. Those that failed have none, they are counted in ``failed``; nor has a role of
    which nobody could tell what it was worth, as often as ``unscored`` says.
    ``clusters[i]`` names the independent observation that root ``results[i]`` is part of: itself, or its group.
    ``version`` is that of the policy that played.
    """

    version: int
    greedy: bool
    results: Sequence[GenerateResult]
    clusters: Sequence[str]
    rewards: Mapping[str, Estimate]
    metrics: Mapping[str, Estimate]

    @property
    def rollouts(self) -> list[Rollout]:
        """Those of all trees, failed ones too."""
        return [rollout for tree in self.results for rollout in tree.all_rollouts()]

    @property
    def failed(self) -> int:
        return sum(rollout.error is not None for rollout in self.rollouts)

    @property
    def unscored(self) -> int:
        return sum(len(rollout.unscored) for rollout in self.rollouts)

    def flat(self) -> dict[str, float]:
        """Its numbers under names with slashes, as a training step's metrics have them: ``eval/reward/Solver`` and
        the ends of its interval, ``eval/reward_low/Solver`` and ``eval/reward_high/Solver``, and so on."""
        counts = {"rollouts": len(self.rollouts), "failed": self.failed, "unscored": self.unscored}
        values = {f"eval/{name}": float(count) for name, count in counts.items()}
        for role, estimate in self.rewards.items():
            values[f"eval/reward/{role}"] = estimate.mean
            values[f"eval/reward_low/{role}"] = estimate.low
            values[f"eval/reward_high/{role}"] = estimate.high
        return values | {f"eval/rubric/{name}": estimate.mean for name, estimate in self.metrics.items()}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one policy got more than another, for roles and metrics that both have numbers of."""

    rewards: Mapping[str, Estimate]
    metrics: Mapping[str, Estimate]


async def evaluate(arena: Arena, episodes: int = EPISODES, *, greedy: bool = False) -> Evaluation:
    """Play an evaluation through the arena's runtime; with ``greedy`` every role speaks at temperature 0.

    Not on a cluster, where a run evaluates by itself (``eval_every``).

    Raises:
        ConfigError: the arena has nothing to run on, or the evaluation has no episodes.
    """
    requests = eval_requests(arena, episodes, greedy=greedy)
    return await play(arena, requests)


async def play(arena: Arena, requests: Sequence[EpisodeRequest]) -> Evaluation:
    """Play ``requests``, which ``eval_requests`` has made."""
    arena = arena.fork()
    version = arena.get_policy_version()
    return score(arena, requests, await arena.runtime.run(requests, None), version)


def eval_requests(arena: Arena, episodes: int, *, greedy: bool = False) -> list[EpisodeRequest]:
    """What an evaluation of ``arena`` plays, with its artifacts: ``Arena.get_eval_batch``, checked and named.

    Raises:
        ConfigError: there is nothing to play.
        UnknownNameError: an episode type isn't registered.
    """
    if episodes < 1:
        raise ConfigError(f"an evaluation of {episodes} episodes says nothing; it needs 1 or more")
    arena = arena.fork()
    arena.rng = derive_rng(arena.seed, "eval")
    drawn = arena.get_eval_batch(episodes)
    if not drawn:
        raise ConfigError(
            f"{type(arena).__name__}.get_eval_batch() returned no requests; there is nothing to play"
        )
    for request in drawn:
        arena.episode(request.episode_type)
    named = [
        replace(request, id=f"{ID_PREFIX}{index}", is_trainable=False, greedy=greedy)
        for index, request in enumerate(drawn)
    ]
    return [arena.resolve_artifact(request) for request in named]


def score(
    arena: Arena, requests: Sequence[EpisodeRequest], results: Sequence[GenerateResult], version: int
) -> Evaluation:
    """Score the groups among ``results``, which policy ``version`` played for ``requests``, and take the means."""
    arena = arena.fork()
    groups: dict[str, list[GenerateResult]] = {}
    for request, result in zip(requests, results, strict=True):
        groups.setdefault(request.group or "", []).append(result)
    for members in groups.values():
        arena.score_group(members)
    clusters = [_cluster(arena, request) for request in requests]
    return Evaluation(
        version=version,
        greedy=any(request.greedy for request in requests),
        results=results,
        clusters=clusters,
        rewards=_estimates(results, clusters, _rewards),
        metrics=_estimates(results, clusters, _metrics),
    )


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """How much more ``after`` got than ``before``, question by question.

    Raises:
        ConfigError: they are not of the same questions.
    """
    if _questions(before) != _questions(after):
        raise ConfigError("only evaluations of the same episodes, greedy or not, can be compared")
    return Comparison(_differences(before, after, _rewards), _differences(before, after, _metrics))


def _questions(evaluation: Evaluation) -> list[object]:
    asked = [(tree.rollout.id, tree.rollout.episode_type) for tree in evaluation.results]
    return [evaluation.greedy, evaluation.clusters, asked]


def _cluster(arena: Arena, request: EpisodeRequest) -> str:
    if request.group is None and not arena.scores_siblings:
        return request.id
    return f"group {request.group or ''}"


def _rewards(rollout: Rollout) -> Mapping[str, float]:
    return rollout.rewards


def _metrics(rollout: Rollout) -> Mapping[str, float]:
    return rollout.metrics


def _estimates(
    results: Sequence[GenerateResult], clusters: Sequence[str], numbers: Numbers
) -> dict[str, Estimate]:
    return {name: estimate_mean(totals) for name, totals in _totals(results, clusters, numbers).items()}


def _differences(before: Evaluation, after: Evaluation, numbers: Numbers) -> dict[str, Estimate]:
    earlier = _totals(before.results, before.clusters, numbers)
    later = _totals(after.results, after.clusters, numbers)
    return {name: estimate_difference(earlier[name], later[name]) for name in earlier if name in later}


def _totals(
    results: Sequence[GenerateResult], clusters: Sequence[str], numbers: Numbers
) -> dict[str, Totals]:
    """For every name among the ``numbers``: each cluster's sum and count, clusters in order of appearance."""
    index = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    totals: dict[str, Totals] = {}
    for cluster, result in zip(clusters, results, strict=True):
        for rollout in _played(result):
            for name, value in numbers(rollout).items():
                total = totals.setdefault(name, np.zeros((len(index), 2)))
                total[index[cluster]] += (value, 1)
    return totals


def _played(tree: GenerateResult) -> Iterator[Rollout]:
    return (rollout for rollout in tree.all_rollouts() if rollout.error is None)
