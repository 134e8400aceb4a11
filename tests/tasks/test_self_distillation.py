"""Generate, verify, filter: who is kept, who agrees, and that nobody is trained away from anything."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.tasks.self_distillation import SelfDistillationArena
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message


def scripted_arena(
    samples: Sequence[str], says: Sequence[str] = (), **options: object
) -> SelfDistillationArena:
    """One whose Generator and Verifier say these in turn."""
    said, judged = iter(samples), iter(says)

    def reply(messages: Sequence[Message]) -> str:
        return next(judged) if messages[-1]["content"].startswith("Is ") else next(said)

    return SelfDistillationArena(8, client=MockInferenceClient(reply), **options)


async def sampled(answer: str, *verdicts: str, **options: object) -> GenerateResult:
    arena = scripted_arena([answer], verdicts, verdicts=len(verdicts), **options)
    return await arena.run_episode("distill", [3, 4])


@pytest.mark.parametrize(
    ("answer", "verdicts", "check", "verifier", "both"),
    [
        ("7", ["yes", "yes", "no"], 1, 1, 1),
        ("It is 7.", ["no", "no", "yes"], 1, 0, 0),
        ("8", ["yes", "yes", "no"], 0, 1, 0),
        ("8", ["no", "no", "no"], 0, 0, 0),
        ("7", ["yes", "no", "hm"], 1, 0, 0),  # a tie of those that can be read
        ("7", ["yes", "hm", "hm"], 1, 1, 1),
        ("7", ["hm", "hm", "hm"], 1, 0, 0),
    ],
)
async def test_who_is_kept(answer: str, verdicts: list[str], check: int, verifier: int, both: int):
    for kept_by, kept in (("check", check), ("verifier", verifier), ("both", both)):
        result = await sampled(answer, *verdicts, kept_by=kept_by)
        assert result.rewards == {"Generator": kept}
        assert result.rollout.metrics["right/Generator"] == check
        assert result.rollout.metrics["survived/Generator"] == kept


@pytest.mark.parametrize(
    ("answer", "rewards"),
    # verdicts yes, no, "Yes.", and one that can't be read
    [("7", [1, 0, 1, 0]), ("8", [0, 1, 0, 0])],
)
async def test_a_verdict_is_worth_its_truth(answer: str, rewards: list[int]):
    result = await sampled(answer, "yes", "no", "Yes.", "yes and no")
    assert [child.rewards["Verifier"] for child in result.children] == rewards
    assert [child.rollout.metrics["unreadable/Verifier"] for child in result.children] == [0, 0, 0, 1]
    assert result.children[0].rollout.steps[0].prompt[-1]["content"] == f"Is 3 + 4 = {answer}?"


async def test_what_says_no_number_is_neither_judged_nor_kept():
    result = await sampled("who knows", "yes")
    assert (result.children, result.rewards, result.rollout.error) == ([], {"Generator": 0.0}, None)


async def test_only_what_was_kept_is_learned_from():
    """Samples 7, 8, 7, 9: mean 0.5, so ±0.5, of which the negative are cut to 0. Verdicts on a right one, yes, no:
    0.5 and 0; on a wrong one, yes, yes: equal, 0."""
    arena = scripted_arena(["7", "8", "7", "9"], ["yes", "no", "yes", "yes"] * 2, verdicts=2)
    arena.batch_size = 4
    arena.get_batch = lambda: [EpisodeRequest("distill", [3, 4], group="q")] * 4  # type: ignore[method-assign]
    step = await arena.step()
    assert [result.rollout.advantages["Generator"] for result in step.results] == [0.5, 0.0, 0.5, 0.0]
    judged = [[child.rollout.advantages["Verifier"] for child in result.children] for result in step.results]
    assert all(advantage >= 0 for verdicts in judged for advantage in verdicts)
    for result, advantages in zip(step.results, judged, strict=True):
        rewards = [child.rewards["Verifier"] for child in result.children]
        mean = sum(rewards) / 2
        assert advantages == [max(reward - mean, 0.0) for reward in rewards]


def test_samples_of_a_question_are_a_group_and_questions_come_from_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        arena = SelfDistillationArena(16, 8)
        arena.configure(RunConfig(seed=seed, batch_size=16))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [len({(r.group, tuple(r.artifact)) for r in first[a : a + 8]}) for a in (0, 8)] == [1, 1]
