"""Iterated amplification with a person as a sub-episode (Christiano et al. 2018, arXiv:1810.08575).

A Decomposer splits a question, the Answerer answers the parts, a Combiner makes one answer of theirs: the *amplified*
answer, which a person rates from 0 to 10. The rating is what the Decomposer and the Combiner earn. Then the amplified
answer is *distilled*: Answerers who get the whole question at once earn the rating for saying the same.

The person is asked in a sub-episode of their own, in which no role speaks: their words have no tokens, and are never
trained on. A reply that isn't a number from 0 to 10, or none in time, is an abstention: nobody can tell what the makers
of the answer were worth, so they are unscored, and nothing is learned from it. Where nobody is to be asked a computed
oracle stands in, which takes a point off for every one that the answer is off. A split or a sum that can't be read is a
*forfeit* of who said it, and nobody is bothered with it; a split of which no sum was made is unscored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.human.person import Person
from selfplay_ray.judging.grammar import read_score
from selfplay_ray.rubric import Rubric
from selfplay_ray.seeds import derive_seed
from selfplay_ray.types import EpisodeRequest, Examples, Role, Rollout

BEST = 10
FORFEIT = -0.5
A_NUMBER = 0.1
"""What an Answerer earns for any number, of what it would for the right one."""
MOST_PARTS = 4
NUMBER = re.compile(r"(?:(?<!\d)-)?\d+")
SUM = re.compile(r"\d{1,3}(?: \+ \d{1,3}){0,7}")
RATE = "What is {}?\nThe answer given is {}.\nHow good is that, from 0 (worst) to 10 (best)?"

SPLITS = (("Split in two: 2 + 5 + 1 + 3", "2 + 5, 1 + 3"), ("Split in two: 4 + 4 + 6 + 1", "4 + 4, 6 + 1"))
ANSWERS = (("What is 1 + 2?", "3"), ("What is 4 + 3?", "7"))
COMBINED = (
    ("2 + 5 = 7, 1 + 3 = 4. Together?", "7 + 4 = 11"),
    ("4 + 4 = 8, 6 + 1 = 7. Together?", "8 + 7 = 15"),
)


def read_split(text: str) -> list[str] | None:
    """The parts of a question, two or more, which are sums themselves."""
    parts = [part.strip() for part in text.strip().rstrip(".").split(",")]
    return parts if 2 <= len(parts) <= MOST_PARTS and all(map(SUM.fullmatch, parts)) else None


def last_number(text: str) -> str | None:
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def oracle_rating(question: str, answer: str) -> float:
    """What stands in for a person: 10, less one for every one that the answer is off."""
    off = abs(sum(map(int, NUMBER.findall(question))) - int(answer))
    return max(0.0, BEST - off)


def amplified_reward(rollout: Rollout, arena: Arena) -> dict[str, float | None]:
    """The rating, from 0 to 1, for who made the answer. A forfeit costs the one who made it; then, as without a rating,
    nobody can tell what the work of the other was worth."""
    forfeited_by, rating = rollout.extras["forfeited_by"], rollout.extras["rating"]
    if forfeited_by is not None:
        return dict.fromkeys(rollout.roles) | {forfeited_by: FORFEIT}
    rollout.metrics["human/abstained"] = float(rating is None)
    if rating is None:
        return dict.fromkeys(rollout.roles)
    rollout.metrics["human/rating"] = rating
    return dict.fromkeys(rollout.roles, rating / BEST)


def forfeit(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for whom it was that couldn't be read."""
    return {role: float(rollout.extras["forfeited_by"] == role) for role in rollout.roles}


def distilled_reward(rollout: Rollout, arena: Arena) -> dict[str, float | None]:
    """What the amplified answer is worth, for saying the same; a tenth of it for another number. What the answer to a
    part is worth nobody says."""
    target, worth = rollout.artifact["target"], rollout.artifact["worth"]
    if target is None:
        return {"Answerer": None}
    said = rollout.extras["answer"]
    return {"Answerer": worth * (1.0 if said == target else A_NUMBER if said is not None else 0.0)}


class AnswerEpisode(Episode):
    """The artifact holds a ``question``, and the ``target`` and what it is ``worth`` where there are any."""

    rubric = Rubric([distilled_reward])

    async def rollout(self, arena: Arena, artifact: Mapping[str, Any], state: EpisodeState) -> EpisodeState:
        asked = f"What is {artifact['question']}?"
        reply = await self.call_model("Answerer", asked, arena, examples=ANSWERS)
        state.data["answer"] = last_number(reply.text)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return state.data


class HumanEpisode(Episode):
    """A person rates an ``answer`` to a ``question``; without a person, the oracle does."""

    def __init__(self, person: Person | None) -> None:
        self.person = person

    async def rollout(self, arena: Arena, artifact: Mapping[str, str], state: EpisodeState) -> EpisodeState:
        question, answer = artifact["question"], artifact["answer"]
        if self.person is None:
            state.data = {"reply": None, "rating": oracle_rating(question, answer)}
            return state
        # The same if this request is played again elsewhere, and another where there is something else to rate, as in
        # the next evaluation, whose requests are those of the one before.
        key = f"{state.rng.getrandbits(128):032x}-{derive_seed(0, question, answer):016x}"
        reply = await self.person.ask(key, RATE.format(question, answer))
        state.data = {"reply": reply, "rating": None if reply is None else read_score(reply, BEST)}
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return state.data


class AmplifyEpisode(Episode):
    """The artifact is a question, a sum. ``distillations`` Answerers learn from the amplified answer."""

    rubric = Rubric([amplified_reward, forfeit], [1.0, 0.0])

    def __init__(self, distillations: int) -> None:
        self.distillations = distillations

    async def rollout(self, arena: Arena, artifact: str, state: EpisodeState) -> EpisodeState:
        state.data = {"answer": None, "rating": None, "forfeited_by": None}
        parts = read_split(await self._ask(arena, "Decomposer", f"Split in two: {artifact}", SPLITS))
        if parts is None:
            state.data["forfeited_by"] = "Decomposer"
            return state
        answered = await arena.generate_rollouts([_answer(part) for part in parts])
        sums = [
            f"{part} = {child.rollout.extras.get('answer')}"
            for part, child in zip(parts, answered, strict=True)
        ]
        said = await self._ask(arena, "Combiner", f"{', '.join(sums)}. Together?", COMBINED)
        state.data["answer"] = answer = last_number(said)
        if answer is None:
            state.data["forfeited_by"] = "Combiner"
            return state
        about = {"question": artifact, "answer": answer}
        rated = await arena.run_episode("human", about, is_trainable=False)
        state.data["rating"] = rating = rated.rollout.extras.get("rating")
        if rating:
            whole = _answer(artifact, answer, rating / BEST)
            await arena.generate_rollouts([whole] * self.distillations)
        return state

    async def _ask(self, arena: Arena, role: str, question: str, examples: Examples) -> str:
        return (await self.call_model(role, question, arena, examples=examples)).text

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return state.data


def _answer(question: str, target: str | None = None, worth: float = 0.0) -> EpisodeRequest:
    """An answer, to be learned from if there is something it should be."""
    artifact = {"question": question, "target": target, "worth": worth}
    return EpisodeRequest("answer", artifact, is_trainable=target is not None)


class IteratedAmplificationArena(GroupedArena):
    """``batch_size`` amplified answers a step, ``group_size`` to each question, all of which the ``person`` rates."""

    def __init__(
        self,
        batch_size: int,
        person: Person | None = None,
        *,
        group_size: int = 4,
        distillations: int = 4,
        **options: Any,
    ) -> None:
        super().__init__("amplify", batch_size, group_size, **options)
        self.add_role(Role("Decomposer", max_tokens=16))
        self.add_role(Role("Combiner", max_tokens=12))
        self.add_role(Role("Answerer", max_tokens=8))
        self.add_episode("amplify", AmplifyEpisode(distillations))
        self.add_episode("answer", AnswerEpisode())
        self.add_episode("human", HumanEpisode(person))

    def draw_artifact(self) -> str:
        return " + ".join(str(self.rng.randint(1, 9)) for _ in range(4))
