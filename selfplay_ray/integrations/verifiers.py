"""verifiers' environments as episodes, their rewards as ours (`pip install 'selfplay-ray[verifiers]'`).

Prime Intellect, verifiers 0.4. An environment plays one of its taskset's tasks with one agent or several, in whatever
way it likes; where an agent asks its model, the episode does, so that every reply is a step with its exact tokens.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.errors import ConfigError, EpisodeError
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.integrations.textarena_game import Chance
from selfplay_ray.integrations.verifiers_environment import (
    Environment,
    TaskData,
    agents,
    import_verifiers,
    task_of,
)
from selfplay_ray.integrations.verifiers_stage import Sitting, Stage, stage_of
from selfplay_ray.integrations.verifiers_switchboard import MODEL, ChatRequest
from selfplay_ray.problems import Problem, hold_out, in_passes
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import Completion, EpisodeRequest, Role, Rollout

ONLY_ROLE = "Agent"


def reward(rollout: Rollout, arena: Arena) -> Mapping[str, float]:
    """What the environment's rubric gave, its weights applied: the mean where a role played several times."""
    rewards: Mapping[str, float] = rollout.extras["rewards"]
    return rewards


class EnvironmentRubric(Rubric):
    """The environment's own rewards; each of their parts, and its metrics, is a metric."""

    def __init__(self) -> None:
        super().__init__([reward])

    async def score(self, rollout: Rollout, arena: Arena) -> None:
        await super().score(rollout, arena)
        rollout.metrics.update(rollout.extras["metrics"])


class VerifiersEpisode(Episode):
    """One of ``environment``'s tasks, which is the artifact, played in this process.

    ``roles`` says which role each agent is. One that the environment calls not trainable is an oracle: its words are
    no steps. An error in the environment or its rewards is an EpisodeError; that a limit of verifiers' or the end of
    a reply's tokens cut an agent short is a truncation.
    """

    def __init__(self, environment: Environment, roles: Mapping[str, str]) -> None:
        self.environment = environment
        self.roles = dict(roles)
        self.rubric = EnvironmentRubric()

    async def rollout(self, arena: Arena, artifact: TaskData, state: EpisodeState) -> EpisodeState:
        stage = await stage_of(self.environment)
        chance = Chance(state.rng.getrandbits(64))
        async with Sitting(stage, functools.partial(self._speak, arena)) as sitting:
            played = await sitting.play(task_of(stage.env, artifact), self._model(stage), chance)
        self._check(stage, played, artifact)
        state.data["traces"] = played.traces
        state.truncated = any(trace.is_truncated or trace.is_timeout for trace in played.traces)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        """The rewards by role, the metrics by their names, and how each agent ended."""
        rewards: dict[str, list[float]] = {}
        metrics: dict[str, list[float]] = {}
        for trace in state.data["traces"]:
            role = self.roles.get(trace.agent.name)
            if role is None or not trace.agent.trainable:
                continue
            rewards.setdefault(role, []).append(trace.reward)
            parts = {name: part.score for name, part in trace.rewards.items() if part is not None}
            for name, value in {**trace.metrics, **parts}.items():
                if value is not None and math.isfinite(value):
                    metrics.setdefault(f"{name}/{role}", []).append(float(value))
        return {
            "rewards": {role: _mean(values) for role, values in rewards.items()},
            "metrics": {name: _mean(values) for name, values in metrics.items()},
            "stopped": [[trace.agent.name, trace.stop_condition] for trace in state.data["traces"]],
        }

    async def _speak(self, arena: Arena, trace: Any, asked: ChatRequest) -> Completion:
        """Make a call that ``trace`` asks for: as its role, or as an oracle."""
        try:
            messages = asked.conversation()
        except EpisodeError as error:
            raise EpisodeError(
                f"verifiers' environment {self.environment.name!r} can't be played here: {error}"
            ) from None
        role = self.roles.get(trace.agent.name) if trace.agent.trainable else None
        return await arena.call_model(messages, role, asked.temperature, asked.limit)

    def _model(self, stage: Stage) -> Any:
        """What verifiers is told about the model."""
        vf = import_verifiers()
        board = stage.switchboard
        client = vf.EvalClientConfig(
            base_url=board.url, api_key_var="SELFPLAY_NEEDS_NO_KEY", headers=board.headers
        )
        return vf.ModelContext(model=MODEL, client=client)

    def _check(self, stage: Stage, played: Any, artifact: TaskData) -> None:
        """Raise EpisodeError unless the environment takes ``played`` for complete."""
        if stage.env.complete(played):
            return
        errors = [*played.errors, *(error for trace in played.traces for error in trace.errors)]
        reason = f"{errors[0].type}: {errors[0].message}" if errors else "it wasn't completed"
        raise EpisodeError(
            f"verifiers' environment {self.environment.name!r} failed at task {artifact.get('idx')}: {reason}"
        )


class VerifiersArena(GroupedArena):
    """``batch_size`` episodes a step, ``group_size`` of each task, compared with each other.

    The first ``limit`` tasks are played (0: all). Of them the share ``held_out`` is for evaluation; ``evaluation``,
    the same environment with other options (another split, say), takes its place. The only agent's role is "Agent";
    of several each is a role of its own name, but for those that the options give an endpoint of their own.

    Raises:
        ConfigError: verifiers isn't installed, there is no such environment, or it can't be played: it has tools, no
            agent to train, or no tasks.
    """

    def __init__(
        self,
        batch_size: int,
        environment: Environment,
        *,
        group_size: int = 8,
        evaluation: Environment | None = None,
        held_out: float = 0.1,
        limit: int = 1000,
        max_tokens: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__("task", batch_size, group_size, **options)
        env = environment.make()
        roles = _roles(environment, env)
        for role in roles.values():
            self.add_role(Role(role, max_tokens=max_tokens))
        self.add_episode("task", VerifiersEpisode(environment, roles))
        self.tasks = environment.tasks(env, limit)
        trained, reserved = hold_out(_as_problems(self.tasks), 0.0 if evaluation else held_out)
        self.trained = trained
        self.eval_type, self.eval_tasks, self.eval_order = "task", self.tasks, reserved or trained
        if evaluation is not None:
            self.add_episode("held-out task", VerifiersEpisode(evaluation, roles))
            self.eval_type, self.eval_tasks = "held-out task", evaluation.tasks(evaluation.make(), limit)
            self.eval_order = _as_problems(self.eval_tasks)

    def draw_artifacts(self, count: int) -> list[TaskData]:
        chosen = in_passes(self.trained, self._batches * count, count, self.seed)
        return [self.tasks[task["row"]] for task in chosen]

    def describe(self, artifact: TaskData) -> str:
        return f"task {artifact.get('idx')}"

    def get_eval_batch(self, episodes: int) -> list[EpisodeRequest]:
        """What was held out, each task once, and no more than there is."""
        chosen = in_passes(self.eval_order, 0, min(episodes, len(self.eval_order)), seed=0)
        return [
            EpisodeRequest(self.eval_type, self.eval_tasks[task["row"]], group=f"task {task['row']}")
            for task in chosen
        ]


def _roles(environment: Environment, env: Any) -> dict[str, str]:
    """The role of each agent of ``env`` that asks our model."""
    where = f"verifiers' environment {environment.name!r}"
    taskset = env.taskset
    if taskset.toolsets(taskset.config) or taskset.task_type().toolsets(taskset.config.task):
        raise ConfigError(f"{where} gives its agents tools, and a conversation here is text and nothing else")
    seats = agents(import_verifiers(), env.config)
    ours = [seat for seat, agent in seats.items() if agent.client is None]
    if not ours:
        raise ConfigError(f"all agents of {where} have endpoints of their own; there is none to train")
    return {ours[0]: ONLY_ROLE} if len(seats) == 1 else {seat: seat for seat in ours}


def _as_problems(tasks: list[TaskData]) -> list[Problem]:
    """What tells ``tasks`` apart, whatever their numbers: the same task isn't both held out and trained on."""
    texts = [json.dumps({**task, "idx": None}, sort_keys=True) for task in tasks]
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    return [Problem(prompt=key, answer="", row=row) for row, key in enumerate(keys)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
