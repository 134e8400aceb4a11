"""Spell a word backwards: "t e a" is "a e t". The words are made up, so that none is known by heart."""

from __future__ import annotations

import re
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import Role, Rollout

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
REQUEST = "Spell backwards: "
EXAMPLES = ("gap", "tin")
SPELLED = re.compile(r"\s*[a-z]( [a-z])*\s*")
FORMAT, LETTERS, EXACT = 0.2, 0.5, 0.3  # what each part of an answer is worth at most


def spelled(word: str) -> str:
    """The letters one by one, which a model reads and says as tokens of their own."""
    return " ".join(word)


def in_place(said: str, wanted: str) -> float:
    """The share of letters that stand where they should, from 0 to 1; one too many or too few is a wrong one."""
    same = sum(a == b for a, b in zip(said, wanted, strict=False))
    return same / max(len(said), len(wanted))


def reversal_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Graded, so that a small model has somewhere to start: 0.2 for letters and nothing else, 0.5 for all of them in
    place or a share of it, 0.3 for an exact answer."""
    text, wanted = rollout.steps[0].completion_text.lower(), rollout.artifact[::-1]
    share = in_place("".join(re.findall("[a-z]", text)), wanted)
    well_formed = SPELLED.fullmatch(text) is not None
    return {"Speller": FORMAT * well_formed + LETTERS * share + EXACT * (text.strip() == spelled(wanted))}


class ReverseWordEpisode(Episode):
    rubric = Rubric([reversal_reward])

    async def rollout(self, arena: Arena, artifact: str, state: EpisodeState) -> EpisodeState:
        examples = [(REQUEST + spelled(word), spelled(word[::-1])) for word in EXAMPLES]
        await self.call_model("Speller", REQUEST + spelled(artifact), arena, examples=examples)
        return state


class ReverseWordArena(GroupedArena):
    """``batch_size`` answers a step, ``group_size`` to each word, compared with each other."""

    def __init__(self, batch_size: int, group_size: int = 8, **options: Any) -> None:
        super().__init__("reverse", batch_size, group_size, **options)
        self.add_role(Role("Speller", max_tokens=8))
        self.add_episode("reverse", ReverseWordEpisode())

    def draw_artifact(self) -> str:
        """A word: three letters that can be pronounced."""
        consonants = self.rng.choices(CONSONANTS, k=2)
        return consonants[0] + self.rng.choice(VOWELS) + consonants[1]
