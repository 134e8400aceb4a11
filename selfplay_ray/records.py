"""From credited trees to what is trained on."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from selfplay_ray.credit import CreditAssigner, apply_credit
from selfplay_ray.types import GenerateResult, RoleStats, Rollout, RolloutGroup, Step, TrainingRecord


def credit_group(group_id: str, results: Sequence[GenerateResult], assigner: CreditAssigner) -> RolloutGroup:
    """Assign credit over the trees ``results`` and gather as records the steps of trainable roles that were scored.

    Raises:
        CreditError: as the assigner does.
    """
    weights = assigner.compute(results)
    apply_credit(results, weights)
    rollouts = [result.rollout for tree in results for result in trainable_results(tree)]
    records = tuple(record_of(rollout, step) for rollout in rollouts for step in rollout.learning_steps)
    played = [rollout for tree in results for rollout in tree.all_rollouts()]
    failed = Counter(rollout.episode_type for rollout in played if rollout.error is not None)
    metrics = {
        **rubric_metrics(rollouts),
        "episodes/finished": float(len(played)),
        "episodes/failed": float(failed.total()),
        **{f"episodes/failed/{kind}": float(count) for kind, count in failed.items()},
        "credit/incomplete_groups": float(failed.total() > 0),
        "credit/zero_spread_groups": float(assigner.zero_spread),
        "credit/unscored": float(sum(len(rollout.unscored) for rollout in rollouts)),
        "episodes/broken_prefixes": float(sum(not s.response.extended for r in rollouts for s in r.steps)),
    }
    return RolloutGroup(group_id, len(results), records, reward_stats(rollouts), metrics)


def trainable_results(tree: GenerateResult) -> Iterator[GenerateResult]:
    """The results of ``tree`` that may be trained on: nothing that failed, nothing below what isn't trainable."""
    if not tree.is_trainable:
        return
    if tree.rollout.error is None:
        yield tree
    for child in tree.children:
        yield from trainable_results(child)


def record_of(rollout: Rollout, step: Step) -> TrainingRecord:
    """The step as a record: its tokens as they were sampled, all of them trained on."""
    return TrainingRecord(
        id=f"{rollout.id}:{step.index}",
        role_id=step.role_id,
        rollout_id=rollout.id,
        episode_type=rollout.episode_type,
        prompt_token_ids=step.prompt_token_ids,
        completion_token_ids=step.completion_token_ids,
        logprobs=step.completion_logprobs,
        action_mask=(True,) * len(step.completion_token_ids),
        spans=step.response.spans,
        temperature=step.temperature,
        reward=step.reward,
        advantage=step.advantage,
    )


def reward_stats(rollouts: Iterable[Rollout]) -> dict[str, RoleStats]:
    """Count, mean and (population) standard deviation of the rewards of each role."""
    rewards: dict[str, list[float]] = {}
    for rollout in rollouts:
        for role, reward in rollout.rewards.items():
            rewards.setdefault(role, []).append(reward)
    return {
        role: RoleStats(len(values), statistics.fmean(values), statistics.pstdev(values))
        for role, values in rewards.items()
    }


def rubric_metrics(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """The mean of every metric that the rollouts' rubrics left, as ``rubric/function/role``."""
    values: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.metrics.items():
            values.setdefault(f"rubric/{name}", []).append(value)
    return {name: statistics.fmean(seen) for name, seen in values.items()}
