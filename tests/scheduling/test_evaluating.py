"""An evaluation within a run: beside the batches, the same each time, and no part of what is trained on."""

from __future__ import annotations

import pytest

from selfplay_ray import (
    Arena,
    Artifact,
    Completion,
    Episode,
    EpisodeRequest,
    PolicySpan,
    RAECredit,
    Role,
    Rollout,
)
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.scheduling.coordinator import Coordinator
from selfplay_ray.scheduling.messages import Assignment, Finished, Report, Spawn
from selfplay_ray.types import Step


class Silent(Episode):
    """Stands for its type; what it played is reported by the tests."""

    async def rollout(self, arena, artifact, state):
        return state


class Drawing(Arena):
    """Plays what it draws from a store, to which every scored group adds."""

    def get_batch(self):
        return [EpisodeRequest("play", self.stores["all"].sample_one().data) for _ in range(2)]

    def score_group(self, results):
        self.stores["all"].add(Artifact(f"{len(self.stores['all'])}", 1000))
        for result in results:
            result.rewards["A"] = result.rewards.get("A", 0.0) + 1


def coordinator(**config: object) -> Coordinator:
    arena = Drawing(credit_assigner=RAECredit())
    arena.add_role(Role("A"))
    arena.add_episode("play", Silent())
    store = arena.add_store("all")
    for number in range(50):
        store.add(Artifact(f"{number}", number))
    settings = {
        "num_steps": 3,
        "batch_size": 2,
        "max_staleness": 0,
        "eval_every": 1,
        "eval_episodes": 4,
        **config,
    }
    made = Coordinator(arena, RunConfig.model_validate(settings))
    made.scheduler.add_worker("w")
    made.draw_evaluation()
    return made


def sent(made: Coordinator) -> tuple[list[Assignment], list[Assignment]]:
    """What the worker is to play: of batches, and of evaluations."""
    orders = made.take_orders()
    assignments = orders["w"].assignments if "w" in orders else []
    of_evaluations = [one for one in assignments if one.request.id.startswith("eval.")]
    return [one for one in assignments if one not in of_evaluations], of_evaluations


def play(
    made: Coordinator, assignments: list[Assignment], reward: float = 1.0, error: str | None = None
) -> None:
    said = Completion("a", (1,), (2,), (-1.0,), (PolicySpan(0, 1, 0),), "stop")
    for one in assignments:
        request = one.request
        steps = [Step("A", 0, [], said, 1.0, request.is_trainable)]
        rewards = {} if error else {"A": reward}
        rollout = Rollout(
            request.id, request.episode_type, request.artifact, steps=steps, rewards=rewards, error=error
        )
        made.handle("w", Report(finished=[Finished(rollout, one.attempt)]))


def test_an_evaluation_is_played_beside_the_batch_and_is_no_group():
    made = coordinator()
    made.evaluate()
    batch, evaluation = sent(made)
    assert [one.request.id for one in batch] == ["b000000.0", "b000000.1"]
    assert [one.request.id for one in evaluation] == [f"eval.{index}" for index in range(4)]
    assert all(one.request.greedy and not one.request.is_trainable for one in evaluation)
    play(made, evaluation, reward=0.5)
    assert made.take_groups() == []
    done = made.take_evaluation()
    assert done is not None
    assert (done.version, done.rewards["A"].mean) == (0, 1.5)
    assert made.take_evaluation() is None
    play(made, batch)
    (group,) = made.take_groups()
    assert [record.rollout_id for record in group.group.records] == ["b000000.0", "b000000.1"]


def test_it_is_complete_when_all_of_it_was_played_children_too():
    made = coordinator(eval_episodes=2)
    made.evaluate()
    _, (first, second) = sent(made)
    child = EpisodeRequest("play", 7, is_trainable=False, id="eval.1/0/0", greedy=True)
    made.handle("w", Report(spawned=[Spawn("eval.1", second.attempt, 0, [child])]))
    play(made, [first])
    assert made.take_evaluation() is None
    _, below = sent(made)
    play(made, below)
    play(made, [second])
    done = made.take_evaluation()
    assert done is not None
    assert [rollout.id for rollout in done.rollouts] == ["eval.0", "eval.1", "eval.1/0/0"]


def test_the_same_each_time_whatever_training_did_to_the_stores():
    made = coordinator()
    asked = []
    for version in range(3):
        made.version = version
        made.evaluate()
        batch, evaluation = sent(made)
        asked.append([one.request for one in evaluation])
        play(made, [*batch, *evaluation])
        assert made.take_evaluation().version == version
        made.take_groups()
    assert asked[0] == asked[1] == asked[2]
    assert made.done
    assert len(made.arena.stores["all"]) == 53  # three batches were scored; three evaluations left nothing


def test_what_a_run_keeps_knows_nothing_of_it():
    made, plain = coordinator(), coordinator(eval_every=0)
    made.evaluate()
    for one in (made, plain):
        batch, evaluation = sent(one)
        play(one, evaluation, error="Traceback\nValueError: no")
        play(one, batch)
        (group,) = one.take_groups()
        assert (one.budget.finished, one.budget.failed) == (2, 0)
    assert made.state() == plain.state()
    assert made.take_evaluation().failed == 4
    assert group.state == plain.state()


def test_a_lost_worker_loses_no_evaluation():
    made = coordinator(eval_episodes=2)
    made.evaluate()
    sent(made)
    made.scheduler.remove_worker("w")
    made.scheduler.add_worker("w")
    _, evaluation = sent(made)
    play(made, evaluation)
    assert made.take_evaluation() is not None


def test_nothing_to_evaluate_is_told_before_anything_is_played():
    class Unprepared(Drawing):
        def get_eval_batch(self, episodes):
            return []

    settings = {"batch_size": 2, "eval_every": 1}
    made = Coordinator(Unprepared(), RunConfig.model_validate(settings))
    with pytest.raises(ConfigError, match=r"get_eval_batch\(\) returned no requests"):
        made.draw_evaluation()
    Coordinator(Unprepared(), RunConfig.model_validate({**settings, "eval_every": 0})).draw_evaluation()
