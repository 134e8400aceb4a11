"""Self-distillation: a Generator samples answers, a Verifier judges them, and only what passes a filter is learned.

That is rejection-sampling fine-tuning (Yuan et al. 2023, arXiv:2308.01825; Zelikman et al. 2022, STaR). Whether an
answer is right is computed as well: the Verifier is rewarded for saying so, several times about each answer, so that it
is compared with itself on the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from selfplay_ray.answers import read_number, same_number
from selfplay_ray.arena import Arena
from selfplay_ray.credit import GRPOCredit
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.judging.grammar import read_choice
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, Role, Rollout

Filter = Literal["check", "verifier", "both"]
"""What a sample must pass to be kept: the computed check, most of the Verifier's verdicts, or both."""


def question(numbers: Sequence[int]) -> str:
    return f"What is {' + '.join(map(str, numbers))}?"


def claim(numbers: Sequence[int], answer: str) -> str:
    return f"Is {' + '.join(map(str, numbers))} = {answer}?"


GENERATOR_EXAMPLES = ((question([2, 1]), "3"), (question([4, 5]), "9"))
VERIFIER_EXAMPLES = (
    (claim([2, 1], "3"), "yes"),
    (claim([4, 5], "7"), "no"),
    (claim([6, 2], "4"), "no"),
    (claim([1, 7], "8"), "yes"),
)


def verifier_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for a verdict that agrees with the computed check; 0 for another, or for none that can be read."""
    right = same_number(rollout.artifact["answer"], str(sum(rollout.artifact["numbers"])))
    return {"Verifier": float(rollout.extras["verdict"] == ("yes" if right else "no"))}


def unreadable(rollout: Rollout, arena: Arena) -> dict[str, float]:
    return {"Verifier": float(rollout.extras["verdict"] is None)}


class VerifyEpisode(Episode):
    rubric = Rubric([verifier_reward, unreadable], [1.0, 0.0])

    async def rollout(self, arena: Arena, artifact: Mapping[str, Any], state: EpisodeState) -> EpisodeState:
        asked = claim(artifact["numbers"], artifact["answer"])
        await self.call_model("Verifier", asked, arena, examples=VERIFIER_EXAMPLES)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return {"verdict": read_choice(state.last_completion_text, ["yes", "no"])}


class DistillEpisode(Episode):
    def __init__(self, kept_by: Filter, verdicts: int) -> None:
        self.kept_by = kept_by
        self.verdicts = verdicts
        self.rubric = Rubric([self.survived, self.right], [1.0, 0.0])

    async def rollout(self, arena: Arena, artifact: Sequence[int], state: EpisodeState) -> EpisodeState:
        reply = await self.call_model("Generator", question(artifact), arena, examples=GENERATOR_EXAMPLES)
        said = read_number(reply.text)
        state.data["answer"] = None if said is None else str(said.value)
        if said is not None:
            about = {"numbers": list(artifact), "answer": str(said.value)}
            state.child_results = await arena.generate_rollouts(
                [EpisodeRequest("verify", about)] * self.verdicts
            )
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        verdicts = [child.rollout.extras.get("verdict") for child in state.child_results]
        return {"answer": state.data["answer"], "verdicts": verdicts}

    def right(self, rollout: Rollout, arena: Arena) -> Mapping[str, float]:
        """Whether it passes the computed check."""
        answer = rollout.extras["answer"]
        return {"Generator": float(answer == str(sum(rollout.artifact)))}

    def survived(self, rollout: Rollout, arena: Arena) -> Mapping[str, float]:
        """Whether it is kept. Verdicts that can't be read are none; in a tie of those that can it isn't."""
        verdicts = rollout.extras["verdicts"]
        believed = verdicts.count("yes") > verdicts.count("no")
        right = self.right(rollout, arena)["Generator"] == 1
        kept = {"check": right, "verifier": believed, "both": right and believed}
        return {"Generator": float(kept[self.kept_by])}


class SelfDistillationArena(GroupedArena):
    """``batch_size`` samples a step, ``group_size`` of each question, with ``verdicts`` on each. What did worse than
    its siblings is not learned from, so a group of which all were kept has nothing more to give."""

    def __init__(
        self,
        batch_size: int,
        group_size: int = 8,
        *,
        verdicts: int = 4,
        kept_by: Filter = "check",
        **options: Any,
    ) -> None:
        options.setdefault("credit_assigner", GRPOCredit(positive_only=True))
        super().__init__("distill", batch_size, group_size, **options)
        self.add_role(Role("Generator", max_tokens=8))
        self.add_role(Role("Verifier", max_tokens=4))
        self.add_episode("distill", DistillEpisode(kept_by, verdicts))
        self.add_episode("verify", VerifyEpisode())

    def draw_artifact(self) -> list[int]:
        return [self.rng.randint(0, 9), self.rng.randint(0, 9)]

    def describe(self, artifact: Sequence[int]) -> str:
        return question(artifact)
