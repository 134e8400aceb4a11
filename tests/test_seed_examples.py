"""The examples of the document this library was asked for in: they run as written there, but for their imports."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import pytest

from selfplay_ray import (
    Arena,
    Episode,
    EpisodeRequest,
    LocalRuntime,
    Message,
    MockInferenceClient,
    Role,
    Rollout,
    Rubric,
    SingleTurnEpisode,
    TrainingRecord,
)
from selfplay_ray.errors import ErrorBudgetExceeded
from selfplay_ray.training.health import TrainMetrics
from selfplay_ray.training.loop import simple_training_loop

# "Hierarchical Episodes = Monte Carlo Scoring for Free"

prompt = "Write a question."


def parse_question(text: str) -> str:
    return text.removeprefix("Question: ")


class ProposerEpisode(Episode):
    async def rollout(self, arena, artifact, state):
        # Generate a question
        response = await self.call_model("Proposer", prompt, arena)
        question = parse_question(response.text)

        # Spawn N solver attempts (Monte Carlo)
        requests = [EpisodeRequest("solve", question) for _ in range(8)]
        results = await arena.generate_rollouts(requests)
        state.child_results = results

        return state

    def get_extras(self, state):
        # Pass rate exposed to rubric
        wins = sum(1 for r in state.child_results if r.rewards.get("Solver", 0) > 0)
        return {"pass_rate": wins / len(state.child_results)}

    @property
    def rubric(self):
        return Rubric([goldilocks])


def goldilocks(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Target 50 % difficulty."""
    return {"Proposer": 1.0 - 2.0 * abs(rollout.extras["pass_rate"] - 0.5)}


def exact(rollout: Rollout, arena: Arena) -> dict[str, float]:
    return {"Solver": float(rollout.steps[-1].completion_text == "4")}


class SolveEpisode(SingleTurnEpisode):
    rubric = Rubric([exact])

    def get_initial_role(self, artifact, state):
        return "Solver"

    def get_initial_prompt(self, arena, artifact, state):
        return artifact


class ScriptedAgents:
    """The Proposer asks; every other pair of Solvers is right; the judge likes the first debater."""

    def __init__(self) -> None:
        self.attempts = itertools.cycle(["4", "5", "6", "4"])

    def __call__(self, messages: Sequence[Message]) -> str:
        asked = messages[-1]["content"]
        if asked == prompt:
            return "Question: 2 + 2?"
        if asked == "2 + 2?":
            return next(self.attempts)
        return "Pro" if asked.startswith("Who won?") else "an argument"


class Curriculum(Arena):
    def get_batch(self):
        return [EpisodeRequest("propose") for _ in range(2)]


def curriculum() -> Curriculum:
    arena = Curriculum(MockInferenceClient(ScriptedAgents()))
    arena.add_role(Role(id="Proposer", system_prompt="You set questions.", temperature=0.9))
    arena.add_role(Role(id="Solver"))
    arena.add_episode("propose", ProposerEpisode())
    arena.add_episode("solve", SolveEpisode())
    return arena


async def test_a_proposer_is_rewarded_by_the_pass_rate_of_its_eight_solvers():
    arena = curriculum()
    result = await arena.run_episode("propose", None)
    assert result.rollout.error is None
    assert result.rollout.extras == {"pass_rate": 0.5}  # 4 of 8
    assert result.rewards == {"Proposer": 1.0}
    assert [child.rewards["Solver"] for child in result.children] == [1, 0, 0, 1, 1, 0, 0, 1]
    assert result.rollout.steps[0].prompt[0] == {"role": "system", "content": "You set questions."}


async def test_a_solver_is_compared_with_its_siblings():
    (group,) = (await curriculum().step()).groups
    assert len(group.records) == 2 * (1 + 8)
    for record in group.records:
        if record.role_id == "Solver":
            assert record.advantage == record.reward - 0.5  # half of its siblings were right


# "LLM-as-Judge Without Reward Hacking"


def parse_winner(text: str) -> str:
    return text.strip()


async def llm_judge(rollout: Rollout, arena: Arena) -> dict[str, float]:
    judge_prompt = "Who won?\n" + "\n".join(step.completion_text for step in rollout.steps)
    # Judge is NOT a role - no training data produced
    response = await arena.call_model(judge_prompt, temperature=0.3)
    winner = parse_winner(response.text)
    loser = "Con" if winner == "Pro" else "Pro"
    return {winner: 1.0, loser: -1.0}


class DebateEpisode(Episode):
    rubric = Rubric(funcs=[llm_judge])

    async def rollout(self, arena, artifact, state):
        for role in ("Pro", "Con"):
            await self.call_model(role, "Argue.", arena)
        return state


async def test_a_judges_words_never_enter_the_training_batch():
    class Debates(Arena):
        def get_batch(self):
            return [EpisodeRequest("debate", {"topic": "tea"})]

    client = MockInferenceClient(ScriptedAgents())
    arena = Debates(client)
    arena.add_role(Role(id="Pro"))
    arena.add_role(Role(id="Con"))
    arena.add_episode("debate", DebateEpisode())
    step = await arena.step()
    assert step.results[0].rewards == {"Pro": 1.0, "Con": -1.0}
    assert [(call.role_id, call.temperature) for call in client.calls] == [
        ("Pro", 1.0),
        ("Con", 1.0),
        (None, 0.3),
    ]
    assert [record.role_id for record in step.groups[0].records] == ["Pro", "Con"]


# "Composable Episode Trees = Arbitrary Training Pipelines"


class TournamentEpisode(Episode):
    async def rollout(self, arena, artifact, state):
        # Round 1: generate candidates
        candidates = await arena.generate_rollouts([EpisodeRequest("proposal", {}) for _ in range(8)])

        # Round 2: head-to-head debates
        for a, b in itertools.combinations(candidates, 2):
            battle = await arena.run_episode("debate", {"a": a, "b": b})
            state.child_results.append(battle)

        # Elo-like scoring from battle outcomes
        return state

    def get_extras(self, state):
        return {"battles": len(state.child_results)}


class ProposalEpisode(SingleTurnEpisode):
    def get_initial_role(self, artifact, state):
        return "Pro"

    def get_initial_prompt(self, arena, artifact, state):
        return "Propose."


async def test_eight_candidates_meet_in_twenty_eight_battles():
    arena = Arena(MockInferenceClient(ScriptedAgents()))
    for role in ("Pro", "Con"):
        arena.add_role(Role(id=role))
    arena.add_episode("tournament", TournamentEpisode())
    arena.add_episode("proposal", ProposalEpisode())
    arena.add_episode("debate", DebateEpisode())
    result = await arena.run_episode("tournament")
    assert result.rollout.error is None
    assert result.rollout.extras == {"battles": 28}
    assert len(result.children) == 8 + 28
    battle = result.children[8].rollout
    assert battle.artifact["a"] is result.children[0]
    assert battle.artifact["b"] is result.children[1]
    assert battle.rewards == {"Pro": 1.0, "Con": -1.0}


# "Core Abstractions"


class RedBlueEpisode(Episode):
    rubric = Rubric([lambda rollout, arena: {"Attacker": 1.0, "Defender": -1.0}])

    async def rollout(self, arena, artifact, state):
        await self.call_model("Attacker", "Attack.", arena)
        await self.call_model("Defender", "Defend.", arena)
        return state


class RecordingTrainer:
    """Stands in for the trainer: keeps what it is given and trains nothing."""

    def __init__(self) -> None:
        self.version = 0
        self.batches: list[Sequence[TrainingRecord]] = []

    def adapter(self) -> Mapping[str, np.ndarray]:
        return {"version": np.array(self.version)}

    def train_step(self, records: Sequence[TrainingRecord]) -> TrainMetrics:
        self.batches.append(records)
        self.version += 1
        unknown = dict.fromkeys((field.name for field in fields(TrainMetrics)), None)
        return TrainMetrics(**{**unknown, "records": len(records)})


async def test_register_and_train():
    class Security(Arena):
        def get_batch(self):
            return [EpisodeRequest("redblue", {}) for _ in range(2)]

    arena, trainer = Security(MockInferenceClient(ScriptedAgents())), RecordingTrainer()
    # Register roles
    arena.add_role(Role(id="Attacker", system_prompt="Find vulnerabilities...", temperature=0.9))
    arena.add_role(Role(id="Defender", system_prompt="Patch the code...", temperature=0.7))

    # Register episode
    arena.add_episode("redblue", RedBlueEpisode())

    # Run training; nobody is rewarded here
    await simple_training_loop(arena, trainer, num_steps=3, min_trainable=0)

    assert trainer.version == 3
    assert [[record.role_id for record in batch] for batch in trainer.batches] == [
        ["Attacker", "Defender", "Attacker", "Defender"]
    ] * 3
    assert [batch[0].rollout_id for batch in trainer.batches] == ["b000000.0", "b000001.0", "b000002.0"]
    assert {record.temperature for record in trainer.batches[0]} == {0.9, 0.7}


class RecordingPublisher:
    """Stands in for an engine: notes the weights it is given."""

    def __init__(self) -> None:
        self.published: list[tuple[int, int]] = []

    async def load_adapter(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        self.published.append((int(weights["version"]), version))


async def test_the_loop_publishes_calls_its_hooks_and_tells_each_step():
    hooks: list[str] = []

    class Hooked(Curriculum):
        async def on_train_start(self):
            hooks.append("start")

        async def on_train_end(self):
            hooks.append("end")

    arena, trainer, publisher, steps = Hooked(), RecordingTrainer(), RecordingPublisher(), []
    likeness = curriculum()
    arena.roles, arena.episodes = likeness.roles, likeness.episodes
    arena.bind(LocalRuntime(arena, MockInferenceClient(ScriptedAgents())))
    history = await simple_training_loop(
        arena, trainer, num_steps=2, publisher=publisher, on_step=steps.append
    )
    assert publisher.published == [(0, 0), (1, 1), (2, 2)]  # what plays first are the trainer's weights too
    assert hooks == ["start", "end"]
    assert history == steps
    assert len(history) == 2


async def test_the_loop_stops_when_too_much_fails():
    class Broken(Episode):
        async def rollout(self, arena, artifact, state):
            raise RuntimeError("no board")

    arena = curriculum()
    arena.add_episode("propose", Broken())
    with pytest.raises(ErrorBudgetExceeded, match="no board"):
        await simple_training_loop(arena, RecordingTrainer(), num_steps=5)
