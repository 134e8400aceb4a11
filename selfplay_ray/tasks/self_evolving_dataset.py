"""A data set that makes itself: a Generator writes problems, Solvers measure how hard each is, and those that are
neither too easy nor too hard are kept. What was kept is what Solvers train on next, and the Generator goes on from.

Keeping problems by the share of attempts that succeed is the filter of R-Zero (Huang et al. 2025, arXiv:2508.05004);
here answers are computed, so that right is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfplay_ray.answers import same_number
from selfplay_ray.arena import Arena
from selfplay_ray.artifacts import Artifact, ArtifactStore
from selfplay_ray.credit import GRPOCredit
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.errors import ConfigError
from selfplay_ray.rubric import Rubric
from selfplay_ray.tasks.proposer_solver import REQUEST, Question
from selfplay_ray.types import EpisodeRequest, GenerateResult, Role, Rollout

SEEDS = ("1 + 1", "1 + 2", "2 + 2", "3 + 2", "4 + 1", "2 + 5", "5 + 1", "3 + 4")
EXAMPLES = (("What is 2 + 3?", "5"), ("What is 14 + 5?", "19"))


def answer_of(problem: str) -> str:
    """Computed, not believed."""
    question = Question.parse(problem)
    assert question is not None  # nothing else is ever kept or asked
    return str(question.answer)


def solver_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    return {"Solver": same_number(rollout.steps[0].completion_text, answer_of(rollout.artifact))}


class SolveEpisode(Episode):
    rubric = Rubric([solver_reward])

    async def rollout(self, arena: Arena, artifact: str, state: EpisodeState) -> EpisodeState:
        await self.call_model("Solver", f"What is {artifact}?", arena, examples=EXAMPLES)
        return state


class GenerateEpisode(Episode):
    """Writes a problem and has it attempted, which only measures it. Its reward depends on what is kept already."""

    def __init__(self, n_attempts: int) -> None:
        self.n_attempts = n_attempts

    async def rollout(self, arena: Arena, artifact: Sequence[str], state: EpisodeState) -> EpisodeState:
        shown, answered, asked = artifact
        example = (REQUEST + shown, answered)
        reply = await self.call_model("Generator", REQUEST + asked, arena, examples=[example])
        question = Question.parse(reply.text)
        state.data["problem"] = None if question is None else str(question)
        if question is not None:
            attempts = [EpisodeRequest("solve", str(question), is_trainable=False)] * self.n_attempts
            state.child_results = await arena.generate_rollouts(attempts)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        passed = [child.rewards.get("Solver", 0.0) for child in state.child_results]
        return {
            "problem": state.data["problem"],
            "pass_rate": sum(passed) / len(passed) if passed else None,
        }


class SelfEvolvingDatasetArena(Arena):
    """``generators`` new problems a step, ``n_attempts`` measuring each; the rest of ``batch_size`` are attempts to
    train on, ``group_size`` at each problem drawn from the store, which keeps the newest ``store_size``.

    A problem is kept if its pass rate is from ``easiest`` down to ``hardest``, and it isn't there already.
    """

    def __init__(
        self,
        batch_size: int,
        generators: int = 8,
        *,
        n_attempts: int = 8,
        group_size: int = 8,
        hardest: float = 0.2,
        easiest: float = 0.8,
        store_size: int = 256,
        **options: Any,
    ) -> None:
        options.setdefault("credit_assigner", GRPOCredit(normalize=True))
        super().__init__(batch_size=batch_size, **options)
        if not 0 < generators < batch_size:
            raise ConfigError(f"of {batch_size} episodes {generators} generate; leave some to train on")
        if not 0 <= hardest <= easiest <= 1:
            raise ConfigError(
                f"no pass rate is from {hardest} to {easiest}; give bounds in order, from 0 to 1"
            )
        self.generators = generators
        self.group_size = group_size
        self.hardest, self.easiest = hardest, easiest
        self.add_role(Role("Generator", max_tokens=12))
        self.add_role(Role("Solver", max_tokens=8))
        self.add_episode("generate", GenerateEpisode(n_attempts))
        self.add_episode("solve", SolveEpisode())
        store = self.add_store("problems", ArtifactStore(max_size=store_size))
        for problem in SEEDS:
            store.add(Artifact(problem, problem))

    def get_batch(self) -> list[EpisodeRequest]:
        store = self.stores["problems"]
        shown = [[kept.data for kept in store.sample(3)] for _ in range(self.generators)]
        attempts = self.batch_size - self.generators
        problems = [kept.data for kept in store.sample(-(-attempts // self.group_size))]
        groups = [index // self.group_size for index in range(attempts)]
        return [
            *(EpisodeRequest("generate", three, group="new problems") for three in shown),
            *(EpisodeRequest("solve", problems[g], group=f"{g}: {problems[g]}") for g in groups),
        ]

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        """A Generator gets 1 for a problem that is kept, 0 for any other."""
        store = self.stores["problems"]
        written = [r.rollout for r in results if r.rollout.episode_type == "generate" and not r.rollout.error]
        for rollout in written:
            problem, pass_rate = rollout.extras["problem"], rollout.extras["pass_rate"]
            fitting = pass_rate is not None and self.hardest <= pass_rate <= self.easiest
            known = problem is not None and self._knows(problem)
            if fitting and not known:
                store.add(Artifact(problem, problem))
            rollout.rewards = {"Generator": float(fitting and not known)}
            rollout.metrics["readable/Generator"] = float(problem is not None)
            rollout.metrics["known/Generator"] = float(known)
            rollout.metrics["survived/Generator"] = float(fitting and not known)
        for rollout in written:
            rollout.metrics["store/size"] = float(len(store))

    def _knows(self, problem: str) -> bool:
        """Whether it, or the same with its numbers swapped, is in the store."""
        left, symbol, right = problem.split()
        return any(
            self.stores["problems"].get(f"{a} {symbol} {b}") for a, b in ((left, right), (right, left))
        )
