"""What an evaluation plays, that it is the same each time and moves nothing, and what it says."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from selfplay_ray.arena import Arena
from selfplay_ray.artifacts import Artifact
from selfplay_ray.bootstrap import Estimate
from selfplay_ray.credit import RAECredit
from selfplay_ray.episode import Episode
from selfplay_ray.errors import ConfigError, UnknownNameError
from selfplay_ray.evaluation import Evaluation, compare, eval_requests, evaluate
from selfplay_ray.rubric import Rubric
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, Role, Rollout


def worth(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """What the role said is a number, and that is its reward."""
    return {step.role_id: float(step.completion_text) for step in rollout.steps}


class Say(Episode):
    """One role says a number; an artifact "fails" is a bug."""

    rubric = Rubric([worth])

    async def rollout(self, arena, artifact, state):
        if artifact == "fails":
            raise ValueError("the dice fell off the table")
        await self.call_model("Player", f"{artifact}", arena)
        return state


class Ask(Episode):
    """A question, and ``artifact`` children that answer it."""

    rubric = Rubric([worth])

    async def rollout(self, arena, artifact, state):
        await self.call_model("Asker", "1", arena)
        state.child_results = await arena.generate_rollouts([EpisodeRequest("say", 1)] * artifact)
        return state


class Game(Arena):
    """Batches of four, each of one number drawn by chance; from a store too, if there is one."""

    drawn: tuple[Any, ...] = ()

    def get_batch(self):
        if self.drawn:
            return [EpisodeRequest("say", artifact) for artifact in self.drawn]
        return [EpisodeRequest("say", self.rng.randint(0, 99)) for _ in range(4)]


def game(*drawn: Any, reply: Any = None, kind: type[Game] = Game, **options: Any) -> Game:
    """A game whose model repeats the number it was told, or says ``reply``."""
    client = MockInferenceClient(lambda messages: reply or messages[-1]["content"])
    arena = kind(client, seed=3, **options)
    arena.drawn = drawn
    for role in ("Player", "Asker"):
        arena.add_role(Role(role))
    arena.add_episode("say", Say())
    arena.add_episode("ask", Ask())
    return arena


def client_of(arena: Arena) -> MockInferenceClient:
    client: MockInferenceClient = arena.runtime.client  # type: ignore[attr-defined]
    return client


def told(arena: Arena) -> list[str]:
    """What the model was asked, in order, and the arena's client forgets it."""
    client = client_of(arena)
    calls, client.calls = client.calls, []
    return [call.messages[-1]["content"] for call in calls]


# What is played


async def test_whole_batches_until_there_are_enough_and_no_batch_of_training():
    arena = game()
    requests = eval_requests(arena, 6)
    assert [request.id for request in requests] == [f"eval.{index}" for index in range(8)]
    trained = [request.artifact for request in (*arena.next_batch(), *arena.next_batch())]
    assert [request.artifact for request in requests] != trained
    assert requests[:4] == eval_requests(arena, 4)  # a longer one begins with the shorter one
    assert not any(request.is_trainable for request in requests)


async def test_the_same_questions_and_seeds_each_time_whatever_happens_between():
    arena = game()
    first = await evaluate(arena, 8)
    seeds = {call.seed for call in client_of(arena).calls}
    asked = told(arena)
    await arena.step()
    await arena.run_episode("say", 1)
    told(arena)
    again = await evaluate(arena, 8)
    assert {call.seed for call in client_of(arena).calls} == seeds
    assert told(arena) == asked
    assert (again.rewards, again.metrics) == (first.rewards, first.metrics)


async def test_an_evaluation_moves_nothing_that_comes_after():
    class Drawing(Game):
        def get_batch(self):
            self.stores["numbers"].add(Artifact(f"new-{len(self.stores['numbers'])}", 7))
            return [EpisodeRequest("say", self.stores["numbers"].sample_one().data) for _ in range(4)]

        def score_group(self, results):
            self.stores["numbers"].add(Artifact("scored", 8))

    class SayAndDraw(Say):
        async def rollout(self, arena, artifact, state):
            arena.stores["numbers"].sample()
            return await super().rollout(arena, artifact, state)

    async def later(evaluations: int) -> tuple[Any, Any]:
        arena = game(kind=Drawing, credit_assigner=RAECredit())
        arena.add_episode("say", SayAndDraw())
        store = arena.add_store("numbers")
        for number in range(20):
            store.add(Artifact(f"{number}", number))
        await arena.step()
        before = copy.deepcopy(arena.state_dict())
        for _ in range(evaluations):
            await evaluate(arena, 4)
        assert arena.state_dict() == before
        return before, [result.rollout.artifact for result in (await arena.step()).results]

    assert await later(0) == await later(2)


async def test_children_are_evaluated_too_and_never_trained_on():
    evaluation = await evaluate(game_of_questions(2, 0, 1, 3), 4)
    results = [result for tree in evaluation.results for result in tree.all_results()]
    assert len(results) == 4 + 6
    assert not any(result.is_trainable for result in results)
    assert not any(step.trainable for result in results for step in result.rollout.steps)
    assert set(evaluation.rewards) == {"Asker", "Player"}
    assert set(evaluation.metrics) == {"worth/Asker", "worth/Player"}


def game_of_questions(*widths: int) -> Game:
    class Asking(Game):
        def get_batch(self):
            return [EpisodeRequest("ask", width) for width in widths]

    return game(kind=Asking)


async def test_greedy_is_greedy_below_as_well():
    arena = game_of_questions(2, 1)
    await evaluate(arena, 2, greedy=True)
    calls = client_of(arena).calls
    assert [call.temperature for call in calls] == [0.0] * 5
    told(arena)
    await evaluate(arena, 2)
    assert {call.temperature for call in client_of(arena).calls} == {1.0}


async def test_a_greedy_evaluation_leaves_judges_as_they_are():
    class Judged(Say):
        async def rollout(self, arena, artifact, state):
            await self.call_model("Player", "1", arena, temperature=0.7)
            await arena.call_model("how was that?", temperature=0.5)
            return state

    arena = game(1)
    arena.add_episode("say", Judged())
    await evaluate(arena, 1, greedy=True)
    assert {call.role_id: call.temperature for call in client_of(arena).calls} == {"Player": 0.0, None: 0.5}


async def test_what_was_held_out_is_what_is_played():
    class HeldOut(Game):
        def get_eval_batch(self, episodes):
            return [EpisodeRequest("say", number) for number in (5, 6, 7)][:episodes]

    arena = game(kind=HeldOut)
    assert (await evaluate(arena, 64)).rewards["Player"].mean == 6.0
    assert (await evaluate(arena, 2)).rewards["Player"].mean == 5.5


def test_artifacts_come_from_a_store_before_anything_is_played():
    arena = game(None, None)
    arena.add_store("say").add(Artifact("only", 41))
    assert [request.artifact for request in eval_requests(arena, 2)] == [41, 41]


@pytest.mark.parametrize("episodes", [0, -1])
def test_no_episodes_say_nothing(episodes: int):
    with pytest.raises(ConfigError, match=f"an evaluation of {episodes} episodes says nothing"):
        eval_requests(game(1), episodes)


def test_empty_batches_and_unknown_episodes_are_told():
    class Empty(Game):
        def get_batch(self):
            return []

    class NothingHeldOut(Game):
        def get_eval_batch(self, episodes):
            return []

    class Unknown(Game):
        def get_batch(self):
            return [EpisodeRequest("sya")]

    with pytest.raises(ConfigError, match=r"Empty.get_batch\(\) returned no requests"):
        eval_requests(game(kind=Empty), 1)
    with pytest.raises(ConfigError, match=r"NothingHeldOut.get_eval_batch\(\) returned no requests"):
        eval_requests(game(kind=NothingHeldOut), 1)
    with pytest.raises(UnknownNameError, match="unknown episode type 'sya'"):
        eval_requests(game(kind=Unknown), 1)


# What it says


async def test_means_are_over_rollouts_and_intervals_over_roots():
    # Roots say 2, 4, 6 and 8: their mean is 5, and no resample's is outside of 2 to 8.
    evaluation = await evaluate(game(2, 4, 6, 8), 4)
    estimate = evaluation.rewards["Player"]
    assert (estimate.mean, estimate.clusters) == (5.0, 4)
    assert 2 <= estimate.low < 5 < estimate.high <= 8
    assert evaluation.clusters == [f"eval.{index}" for index in range(4)]


async def test_failed_episodes_are_counted_and_are_no_zeros():
    evaluation = await evaluate(game(2, "fails", 4, "fails"), 4)
    assert (len(evaluation.rollouts), evaluation.failed) == (4, 2)
    assert (evaluation.rewards["Player"].mean, evaluation.rewards["Player"].clusters) == (3.0, 2)


async def test_what_nobody_could_score_is_counted_and_is_no_zero():
    def unread(rollout: Rollout, arena: Arena) -> dict[str, float | None]:
        said = float(rollout.steps[0].completion_text)
        return {"Player": said if said > 2 else None}

    class Judged(Say):
        rubric = Rubric([unread])

    arena = game(1, 4, 2, 6)
    arena.add_episode("say", Judged())
    evaluation = await evaluate(arena, 4)
    assert (evaluation.unscored, evaluation.flat()["eval/unscored"]) == (2, 2.0)
    assert (evaluation.rewards["Player"].mean, evaluation.rewards["Player"].clusters) == (5.0, 2)
    assert evaluation.metrics["unread/Player"].mean == 5.0


async def test_where_everything_fails_there_is_no_number():
    evaluation = await evaluate(game("fails"), 3)
    assert (evaluation.failed, dict(evaluation.rewards)) == (3, {})


async def test_roots_of_one_question_are_one_observation():
    class Grouped(Game):
        def get_batch(self):
            return [EpisodeRequest("say", number, group=f"{number}") for number in (1, 2) for _ in range(4)]

    evaluation = await evaluate(game(kind=Grouped), 16)
    assert len(evaluation.results) == 16
    assert evaluation.rewards["Player"].clusters == 4  # the same names in the next batch are other groups


async def test_roots_that_are_scored_together_are_one_observation():
    class Best(Game):
        """Who said most has 1."""

        def score_group(self, results):
            most = max(result.rewards["Player"] for result in results)
            for result in results:
                result.rewards["Player"] = float(result.rewards["Player"] == most)

    evaluation = await evaluate(game(1, 2, 3, 4, kind=Best), 8)
    assert evaluation.rewards["Player"].mean == 0.25
    assert evaluation.rewards["Player"].clusters == 2


async def test_before_and_after_question_by_question():
    # 1, 5, 9 and then 2 each more: the means' own intervals overlap, that of the difference is a point.
    before = await evaluate(game(1, 5, 9), 3)
    after = await evaluate(game(3, 7, 11), 3)
    difference = compare(before, after).rewards["Player"]
    assert (difference.mean, difference.low, difference.high) == pytest.approx((2.0, 2.0, 2.0))
    assert after.rewards["Player"].low < before.rewards["Player"].high


async def test_a_question_that_failed_once_still_counts_for_the_other():
    # before: 1, 5, 9 (mean 5); after: 3, failed, 11 (mean 7)
    before, after = await evaluate(game(1, 5, 9), 3), await evaluate(game(3, "fails", 11), 3)
    difference = compare(before, after).rewards["Player"]
    assert (difference.mean, difference.clusters) == (2.0, 2)


async def test_only_the_same_questions_can_be_compared():
    async def of(*drawn: Any, greedy: bool = False) -> Evaluation:
        return await evaluate(game(*drawn), len(drawn), greedy=greedy)

    with pytest.raises(ConfigError, match="only evaluations of the same episodes"):
        compare(await of(1, 2), await of(1, 2, 3))
    with pytest.raises(ConfigError, match="only evaluations of the same episodes"):
        compare(await of(1, 2), await of(1, 2, greedy=True))


async def test_a_role_of_one_policy_alone_is_not_compared():
    assert dict(compare(await evaluate(game("fails")), await evaluate(game(1))).rewards) == {}


async def test_one_root_has_no_interval():
    estimate = (await evaluate(game(4), 1)).rewards["Player"]
    assert isinstance(estimate, Estimate)
    assert estimate.mean == 4.0
    assert math.isnan(estimate.low)


async def test_flat_has_every_number_under_a_name_with_slashes():
    evaluation = await evaluate(game(2, "fails"), 2)
    assert evaluation.flat() == pytest.approx(
        {
            "eval/rollouts": 2.0,
            "eval/failed": 1.0,
            "eval/unscored": 0.0,
            "eval/reward/Player": 2.0,
            "eval/reward_low/Player": math.nan,
            "eval/reward_high/Player": math.nan,
            "eval/rubric/worth/Player": 2.0,
        },
        nan_ok=True,
    )
