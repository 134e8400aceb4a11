"""Several roles with an objective each, trained in one step.

A Writer solves a small problem in words and is paid for the right answer. A Summarizer says what the Writer said: paid
for being faithful to it, right or wrong, and for being brief. A Critic, who saw neither the answer nor the summary,
says whether the Writer is right, and is paid for being right about that. Nobody is paid for what another one is paid
for; `role_weights` says what each objective weighs in the step they share.

A Writer who names no number leaves nothing to summarize or criticize: a *forfeit*, and the others aren't asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import Examples, Role, Rollout

NUMBER = re.compile(r"(?:(?<!\d)-)?\d+")
VERDICT = re.compile(r"\W*(right|wrong)\W*", re.IGNORECASE)
A_NUMBER = 0.2
"""What a Writer's wrong number is worth."""
LONGEST = 12
"""Words from which on a summary isn't brief at all."""


class Problem(NamedTuple):
    """Somebody has ``had`` apples and gets ``got``."""

    had: int
    got: int

    def __str__(self) -> str:
        return f"Ann has {self.had} apples and gets {self.got}. How many has she?"

    @property
    def answer(self) -> int:
        return self.had + self.got


WRITTEN = (
    (str(Problem(5, 2)), "5 and 2 are 7. Ann has 7 apples."),
    (str(Problem(1, 6)), "1 and 6 are 7. Ann has 7 apples."),
    (str(Problem(6, 3)), "6 and 3 are 9. Ann has 9 apples."),
)
SUMMARY = "Say it in a word: {}"
SUMMARIES = (
    (SUMMARY.format("4 and 4 are 8. Ann has 8 apples."), "8"),
    (SUMMARY.format("9 and 1 are 10. Ann has 10 apples."), "10"),
)
CRITIQUE = "{}\nSomebody says: {}\nRight or wrong?"
CRITIQUES = (
    (CRITIQUE.format(Problem(5, 2), "5 and 2 are 7. Ann has 7 apples."), "right"),
    (CRITIQUE.format(Problem(1, 6), "1 and 6 are 8. Ann has 8 apples."), "wrong"),
)


def last_number(text: str) -> int | None:
    numbers = NUMBER.findall(text)
    return int(numbers[-1]) if numbers else None


def correctness(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The Writer's: 1 for ending with the right number, 0.2 for another, 0 for none."""
    said = rollout.extras["written"]
    right = said == Problem(*rollout.artifact).answer
    return {"Writer": 1.0 if right else A_NUMBER if said is not None else 0.0}


def fidelity_and_brevity(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The Summarizer's: half for ending with the Writer's number, and half for being brief about it."""
    if rollout.extras["written"] is None:
        return {}
    faithful = rollout.extras["summarized"] == rollout.extras["written"]
    brevity = max(0.0, 1 - (rollout.extras["words"] - 1) / (LONGEST - 1))
    return {"Summarizer": (0.5 + 0.5 * brevity) * faithful}


def judgement(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The Critic's: 1 for being right about the Writer; 0 for being wrong, or not to be understood."""
    if rollout.extras["written"] is None:
        return {}
    right = rollout.extras["written"] == Problem(*rollout.artifact).answer
    return {"Critic": float(rollout.extras["verdict"] == ("right" if right else "wrong"))}


def unreadable(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for an answer from which nothing could be read; the Writer's is a forfeit."""
    extras = rollout.extras
    if extras["written"] is None:
        return {"Writer": 1.0}
    return {
        "Writer": 0.0,
        "Summarizer": float(extras["summarized"] is None),
        "Critic": float(extras["verdict"] is None),
    }


class MultiObjectiveEpisode(Episode):
    """The artifact is a problem: two numbers."""

    rubric = Rubric([correctness, fidelity_and_brevity, judgement, unreadable], [1.0, 1.0, 1.0, 0.0])

    async def rollout(self, arena: Arena, artifact: tuple[int, int], state: EpisodeState) -> EpisodeState:
        problem = Problem(*artifact)

        async def ask(role: str, question: str, examples: Examples) -> str:
            return (await self.call_model(role, question, arena, examples=examples)).text

        text = " ".join((await ask("Writer", str(problem), WRITTEN)).split())
        state.data = {"written": last_number(text), "summarized": None, "words": 0, "verdict": None}
        if state.data["written"] is None:
            return state
        summary = await ask("Summarizer", SUMMARY.format(text), SUMMARIES)
        verdict = VERDICT.fullmatch(await ask("Critic", CRITIQUE.format(problem, text), CRITIQUES))
        state.data.update(
            summarized=last_number(summary),
            words=len(summary.split()),
            verdict=verdict[1].lower() if verdict else None,
        )
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return state.data


class MultiObjectiveArena(GroupedArena):
    """``batch_size`` answers a step, ``group_size`` to each problem, compared role by role."""

    def __init__(self, batch_size: int, group_size: int = 8, **options: Any) -> None:
        super().__init__("write", batch_size, group_size, **options)
        self.add_role(Role("Writer", temperature=0.7, max_tokens=24))
        self.add_role(Role("Summarizer", max_tokens=16))
        self.add_role(Role("Critic", max_tokens=6))
        self.add_episode("write", MultiObjectiveEpisode())

    def draw_artifact(self) -> tuple[int, int]:
        return self.rng.randint(1, 9), self.rng.randint(1, 9)

    def describe(self, artifact: tuple[int, int]) -> str:
        return str(Problem(*artifact))
