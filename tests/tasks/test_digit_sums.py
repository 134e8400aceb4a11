"""Sums of one-digit numbers: every reward by hand."""

from __future__ import annotations

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.tasks.digit_sums import DigitSumsArena, Sum
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("I don't know.", 0.0),
        ("", 0.0),
        ("fifteen", 0.0),
        ("16", 0.1),  # a number, not the right one
        ("15 or 16", 0.1),  # the right one, but not last
        ("-15", 0.1),
        ("7 + 8 is 15", 0.4),
        ("The answer is 15!", 0.4),
        ("8 + 7 = 15", 0.4),  # not the equation that was asked
        ("15", 1.0),
        (" 15.\n", 1.0),
        ("7 + 8 = 15.", 1.0),
    ],
)
async def test_an_answer_is_graded(text: str, reward: float):
    arena = DigitSumsArena(8, client=MockInferenceClient(lambda messages: text))
    result = await arena.run_episode("add", Sum(7, 8))
    assert result.rewards == {"Adder": reward}
    assert result.rollout.steps[0].prompt_text == "What is 7 + 8?"


async def test_answers_to_one_sum_are_compared_with_each_other():
    """Rewards 1 and 0.1 in one group: mean 0.55, deviation 0.45, advantages ±0.45 / 0.4501. The other group's are
    equal, so they teach nothing."""
    answers = iter(["15", "14", "3", "3"])
    arena = DigitSumsArena(4, group_size=2, client=MockInferenceClient(lambda messages: next(answers)))
    arena.get_batch = lambda: [  # type: ignore[method-assign]
        EpisodeRequest("add", asked, group=str(asked)) for asked in (Sum(7, 8), Sum(1, 1)) for _ in range(2)
    ]
    step = await arena.step()
    advantages = [result.rollout.advantages["Adder"] for result in step.results]
    assert advantages == pytest.approx([0.45 / 0.4501, -0.45 / 0.4501, 0.0, 0.0])


def test_answers_to_a_sum_are_a_group_and_sums_come_from_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        arena = DigitSumsArena(64, group_size=8)
        arena.configure(RunConfig(seed=seed, batch_size=64))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    groups = [first[start : start + 8] for start in range(0, 64, 8)]
    assert [len({(r.group, tuple(r.artifact)) for r in group}) for group in groups] == [1] * 8
    assert len({request.group for request in first}) == 8
    assert all(0 <= number <= 9 for request in first for number in request.artifact)
