"""One run of one episode: what is going on while it plays, and the boundary to code that somebody else wrote."""

from __future__ import annotations

import asyncio
import bisect
import random
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from selfplay_ray.errors import EpisodeError
from selfplay_ray.seeds import derive_rng, derive_seed
from selfplay_ray.types import Completion, EpisodeRequest, GenerateResult, Message, Rollout, Step, TokenPrefix

if TYPE_CHECKING:
    from selfplay_ray.arena import Arena


@dataclass(slots=True)
class EpisodeRun:
    """The bookkeeping of a running episode: its steps, its children, and what names its next call.

    It lives in a context variable, so that ``arena.call_model`` knows who is asking, also from within tasks
    that the episode started.
    """

    request: EpisodeRequest
    seed: int
    steps: list[Step] = field(default_factory=list)
    children: dict[int, list[GenerateResult]] = field(default_factory=dict)
    model_calls: int = 0
    child_calls: int = 0
    child_count: int = 0
    truncated: bool = False
    ended: bool = False

    def rng(self) -> random.Random:
        """Chance for the episode itself, keyed by the request."""
        return derive_rng(self.seed, self.request.id, "episode")

    def next_model_call(self) -> tuple[int, int]:
        """The index of the next model call, and the seed of its sample."""
        index = self.model_calls
        self.model_calls += 1
        return index, derive_seed(self.seed, self.request.id, "call", index)

    def record(self, step: Step) -> None:
        """Keep what a role said, in the order of the calls, whichever was answered first.

        Raises:
            EpisodeError: the episode is over: a reward function spoke as a role, or a task outlived it.
        """
        if self.ended:
            raise EpisodeError(
                f"episode {self.request.id} is over, yet role {step.role_id!r} was called; "
                "reward functions call the model without a role, and an episode awaits its tasks"
            )
        bisect.insort(self.steps, step, key=lambda kept: kept.index)

    def prefix_of(self, role_id: str, messages: tuple[Message, ...]) -> TokenPrefix | None:
        """The tokens that ``messages`` begin with, if they continue what this role has said before."""
        for step in reversed(self.steps):
            heard = len(step.prompt)
            if step.role_id != role_id or len(messages) <= heard:
                continue
            if [*step.prompt, *step.completion] == list(messages[: heard + 1]):
                return _prefix(step.response, heard + 1)
        return None

    def all_children(self) -> list[GenerateResult]:
        """The children's results, in the order they were asked for."""
        return [result for call in sorted(self.children) for result in self.children[call]]


def _prefix(response: Completion, messages: int) -> TokenPrefix:
    return TokenPrefix(
        response.prompt_token_ids + response.completion_token_ids, messages, response.finish_reason == "stop"
    )


_current_run: ContextVar[EpisodeRun | None] = ContextVar("current_run", default=None)


def current_run() -> EpisodeRun | None:
    """The episode run that the calling code is part of, or None outside of all."""
    return _current_run.get()


async def execute(arena: Arena, request: EpisodeRequest) -> tuple[Rollout, list[GenerateResult]]:
    """Play ``request`` and score it: its rollout, and the results of its children.

    Whatever the episode or a reward function raises ends up in ``rollout.error``: a bad rollout is data, not
    a crash. This is the one place that catches everything. Only a cancellation of the calling task passes
    through; one that the episode or a client brought about itself is an error like others.
    """
    run = EpisodeRun(request, arena.seed)
    rollout = Rollout(
        request.id, request.episode_type, request.artifact, dict(request.meta), started_at=time.time()
    )
    token = _current_run.set(run)
    try:
        await _play(arena, run, rollout)
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            raise
        rollout.error = traceback.format_exc()
        rollout.rewards, rollout.unscored = {}, []
    finally:
        run.ended = True
        _current_run.reset(token)
    rollout.steps = list(run.steps)
    rollout.truncated = run.truncated
    rollout.ended_at = time.time()
    return rollout, run.all_children()


def _is_cancelled() -> bool:
    """Whether somebody asked the task that runs this to stop."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _play(arena: Arena, run: EpisodeRun, rollout: Rollout) -> None:
    episode = arena.episode(run.request.episode_type)
    state = await episode.play(arena, run)
    run.ended = True
    rollout.steps = list(run.steps)
    rollout.extras = dict(episode.get_extras(state))
    await episode.rubric.score(rollout, arena)
