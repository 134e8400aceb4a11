"""Self-play in a corpus: a Challenger reads a passage and asks about it, Reasoners answer without having read it.

After Liu et al. 2025, SPICE (arXiv:2510.24684): both are one model, and what the Challenger has read is what keeps it
honest and ahead. It earns exp(-(v - 0.25)² / 0.02), with v the variance of its Reasoners' success, which is most for a
question that half of them get, and -0.1 for one whose answer isn't in its passage. A Reasoner earns up to 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selfplay_ray.answers import same_text
from selfplay_ray.arena import Arena
from selfplay_ray.credit import GRPOCredit
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.errors import ConfigError
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, Role, Rollout

CORPUS = """\
A week has seven days. It begins on Monday and ends on Sunday. A year has twelve months, and the first is January.

A spider has eight legs. An ant has six legs. A bird has two legs and two wings.

The sky is blue on a clear day. Grass is green because of chlorophyll. Snow is white.

Paris is the capital of France. Rome is the capital of Italy. Madrid is the capital of Spain.

Water freezes at 0 degrees Celsius and boils at 100 degrees Celsius. Ice is frozen water.

The Earth goes around the Sun once a year. The Moon goes around the Earth. The largest planet is Jupiter.

Bees make honey. Cows give milk. Hens lay eggs. Sheep give wool.

A triangle has three sides. A square has four sides. A circle is round and has no corners.

The heart pumps blood. The lungs take in oxygen. A human hand has five fingers.

Ice is cold and fire is hot. Lemons are sour and sugar is sweet. Lead is heavy and a feather is light.
"""
PASSAGE = "Text: "
CHALLENGER_EXAMPLES = (
    (PASSAGE + "A dog has four legs. Dogs bark.", "Q: How many legs does a dog have? A: four"),
    (PASSAGE + "London is the capital of England.", "Q: What is the capital of England? A: London"),
    (PASSAGE + "Coal is black. It burns.", "Q: What color is coal? A: black"),
    (PASSAGE + "Fish live in water.", "Q: Where do fish live? A: water"),
)
REASONER_EXAMPLES = (("How many eyes does a cat have?", "two"), ("What color is coal?", "black"))
TASK = re.compile(r"\s*Q: ([^\n?]{3,150}\?)\s*A: ([^\n]{1,40}?)\.?\s*")
RIGHT, ALONE = 0.5, 1.0  # an answer among other words, and by itself
INVALID = -0.1
TEMPERATURE = 0.7
BEST_VARIANCE, WIDTH = 0.25, 0.01


class Task(NamedTuple):
    question: str
    answer: str

    @classmethod
    def read(cls, text: str) -> Task | None:
        found = TASK.fullmatch(text)
        return cls(found[1].strip(), found[2].strip()) if found else None

    def is_grounded(self, passage: str) -> bool:
        """Whether the answer stands in the passage, and not in the question."""
        return stands_in(self.answer, passage) and not stands_in(self.answer, self.question)


def stands_in(answer: str, text: str) -> bool:
    """Whether ``text`` has ``answer`` in it, as words of its own."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def passages(text: str) -> list[str]:
    """The paragraphs of ``text``, which blank lines separate.

    Raises:
        ConfigError: there are none.
    """
    found = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]
    if not found:
        raise ConfigError("the corpus is empty; give a text file of paragraphs with blank lines between them")
    return found


def challenge_reward(outcomes: Sequence[float]) -> float:
    """From the Reasoners' successes, each 0 or 1: exp(-(Var - 0.25)² / (2 · 0.01))."""
    rate = sum(outcomes) / len(outcomes)
    variance = rate * (1 - rate)
    return math.exp(-((variance - BEST_VARIANCE) ** 2) / (2 * WIDTH))


def challenger_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    outcomes = rollout.extras["outcomes"]
    return {"Challenger": challenge_reward(outcomes) if outcomes else INVALID}


def invalid(rollout: Rollout, arena: Arena) -> dict[str, float]:
    return {"Challenger": float(not rollout.extras["outcomes"])}


def reasoner_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for the answer and nothing else, 0.5 for one among other words (of the few it has), 0 for another."""
    reply, answer = rollout.steps[0].completion_text, rollout.artifact["answer"]
    return {"Reasoner": ALONE if same_text(reply, answer) else RIGHT * stands_in(answer, reply)}


class ReasonEpisode(Episode):
    rubric = Rubric([reasoner_reward])

    async def rollout(self, arena: Arena, artifact: Mapping[str, str], state: EpisodeState) -> EpisodeState:
        await self.call_model("Reasoner", artifact["question"], arena, examples=REASONER_EXAMPLES)
        return state


class ChallengeEpisode(Episode):
    rubric = Rubric([challenger_reward, invalid], [1.0, 0.0])

    def __init__(self, n_reasoners: int) -> None:
        self.n_reasoners = n_reasoners

    async def rollout(self, arena: Arena, artifact: str, state: EpisodeState) -> EpisodeState:
        reply = await self.call_model("Challenger", PASSAGE + artifact, arena, examples=CHALLENGER_EXAMPLES)
        task = Task.read(reply.text)
        if task is not None and task.is_grounded(artifact):
            requests = [EpisodeRequest("reason", task._asdict())] * self.n_reasoners
            state.child_results = await arena.generate_rollouts(requests)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        """A Reasoner that failed did not succeed."""
        rewards = [child.rewards.get("Reasoner", 0.0) for child in state.child_results]
        return {"outcomes": [float(reward >= RIGHT) for reward in rewards]}


class SpiceArena(GroupedArena):
    """``batch_size`` questions a step, ``group_size`` from each passage, compared with each other; ``n_reasoners``
    answer each."""

    def __init__(
        self,
        batch_size: int,
        group_size: int = 4,
        *,
        n_reasoners: int = 8,
        corpus: str = CORPUS,
        **options: Any,
    ) -> None:
        options.setdefault("credit_assigner", GRPOCredit())  # undivided, as in the paper (Dr. GRPO)
        super().__init__("challenge", batch_size, group_size, **options)
        self.passages = passages(corpus)
        self.add_role(Role("Challenger", temperature=TEMPERATURE, max_tokens=28))
        self.add_role(Role("Reasoner", temperature=TEMPERATURE, max_tokens=8))
        self.add_episode("challenge", ChallengeEpisode(n_reasoners))
        self.add_episode("reason", ReasonEpisode())

    def draw_artifact(self) -> str:
        return self.rng.choice(self.passages)

    def describe(self, artifact: str) -> str:
        """How the passage begins."""
        return " ".join(artifact.split()[:5])
