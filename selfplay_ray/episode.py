"""Episodes: how agents interact. A subclass of one of these is all that a new task needs."""

from __future__ import annotations

import functools
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selfplay_ray.conversation import Conversations, with_examples
from selfplay_ray.errors import EpisodeError
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import Completion, EpisodeRequest, Examples, GenerateResult, Message, Step

if TYPE_CHECKING:
    from selfplay_ray.arena import Arena
    from selfplay_ray.execution import EpisodeRun


@dataclass
class EpisodeState:
    """What an episode knows while it plays; subclass it or use ``data`` for more.

    ``trajectory`` holds the steps so far. All chance comes from ``rng``, which is keyed by the request, so
    that a run can be repeated.
    """

    trajectory: list[Step] = field(default_factory=list)
    current_role: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    done: bool = False
    child_results: list[GenerateResult] = field(default_factory=list)
    rng: random.Random = field(default_factory=random.Random)
    truncated: bool = False

    @property
    def turn(self) -> int:
        """How many things have been said."""
        return len(self.trajectory)

    @property
    def last_step(self) -> Step | None:
        return self.trajectory[-1] if self.trajectory else None

    @property
    def last_completion_text(self) -> str:
        return self.trajectory[-1].completion_text if self.trajectory else ""


class Episode(ABC):
    """A protocol of interaction. Implement :meth:`rollout`; give a :attr:`rubric`.

    One instance plays many rollouts at once, so what changes during one belongs into its state.
    """

    rubric: Rubric = Rubric()
    """How a rollout is rewarded. As it stands here it rewards nothing."""

    @property
    def episode_type(self) -> str:
        """The name it is registered under where none is given: ``RedBlueEpisode`` is "redblue"."""
        return type(self).__name__.removesuffix("Episode").lower()

    @abstractmethod
    async def rollout(self, arena: Arena, artifact: Any, state: EpisodeState) -> EpisodeState:
        """Play once on ``artifact``."""

    def init_state(self, state: EpisodeState, artifact: Any) -> EpisodeState:
        """Prepare the state before :meth:`rollout`; may return one of a subclass, which then takes over the
        ``trajectory`` and ``rng`` of this one."""
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        """What the rubric should see in ``rollout.extras``."""
        return {}

    async def call_model(
        self,
        role_id: str,
        messages: str | Sequence[Message],
        arena: Arena,
        *,
        examples: Examples = (),
        **sampling: Any,
    ) -> Completion:
        """Let ``role_id`` speak, and keep it as a step. A plain string is one user message.

        ``examples`` of what is asked and answered are shown before. ``sampling``: ``temperature`` and ``max_tokens``,
        where they differ from the role's own.
        """
        return await arena.call_model(with_examples(messages, examples), role_id=role_id, **sampling)

    async def generate(
        self, arena: Arena, artifact: Any, meta: Mapping[str, Any] | None = None, is_trainable: bool = True
    ) -> GenerateResult:
        """One rollout of this episode through ``arena``, where it must be registered under its own type."""
        request = EpisodeRequest(self.episode_type, artifact, meta or {}, is_trainable)
        return (await arena.generate_rollouts([request]))[0]

    async def play(self, arena: Arena, run: EpisodeRun) -> EpisodeState:
        """Set the state up and play; for whoever executes requests."""
        given = EpisodeState(trajectory=run.steps, rng=run.rng())
        state = self._checked("init_state", self.init_state(given, run.request.artifact))
        if state is not given:
            state.trajectory, state.rng = given.trajectory, given.rng
        state = self._checked("rollout", await self.rollout(arena, run.request.artifact, state))
        run.truncated = state.truncated
        return state

    def _checked(self, method: str, state: object) -> EpisodeState:
        if not isinstance(state, EpisodeState):
            raise EpisodeError(
                f"{type(self).__name__}.{method}() returned {state!r}; it must return the episode's state"
            )
        return state


class SingleTurnEpisode(Episode):
    """One role answers one prompt."""

    @abstractmethod
    def get_initial_role(self, artifact: Any, state: EpisodeState) -> str:
        """Who answers."""

    @abstractmethod
    def get_initial_prompt(self, arena: Arena, artifact: Any, state: EpisodeState) -> str:
        """What it is asked."""

    def get_examples(self, role_id: str, artifact: Any, state: EpisodeState) -> Examples:
        """What ``role_id`` is shown before: how to answer."""
        return ()

    async def rollout(self, arena: Arena, artifact: Any, state: EpisodeState) -> EpisodeState:
        role = state.current_role = self.get_initial_role(artifact, state)
        prompt = self.get_initial_prompt(arena, artifact, state)
        await self.call_model(role, prompt, arena, examples=self.get_examples(role, artifact, state))
        state.done = True
        return state


class ChatEpisode(Episode):
    """Roles take turns. Every role has a conversation of its own: what it said is ``assistant``, what it heard
    from the others and from the environment, and what it alone observes, is ``user``.

    So a role's later prompt continues the tokens of its earlier ones. ``max_turns`` counts completions of all
    roles; a rollout that it ends is *truncated*, which is no loss. -1 sets no limit.
    """

    def __init__(self, max_turns: int = -1) -> None:
        if max_turns == 0 or max_turns < -1:
            raise EpisodeError(f"max_turns is {max_turns}; give 1 or more, or -1 for no limit")
        self.max_turns = max_turns

    @abstractmethod
    def get_initial_role(self, artifact: Any, state: EpisodeState) -> str:
        """Who speaks first."""

    @abstractmethod
    def get_initial_prompt(self, arena: Arena, artifact: Any, state: EpisodeState) -> str:
        """What everybody reads first; may be empty."""

    @abstractmethod
    def get_next_role(self, artifact: Any, state: EpisodeState) -> str:
        """Who speaks next, after a turn that did not end it."""

    def is_done(self, artifact: Any, state: EpisodeState) -> bool:
        """Whether it is over, by its own rules; asked after every turn."""
        return state.done

    def get_examples(self, role_id: str, artifact: Any, state: EpisodeState) -> Examples:
        """What ``role_id`` is shown before its own turns: how to answer."""
        return ()

    def get_observation(self, role_id: str, arena: Arena, artifact: Any, state: EpisodeState) -> str:
        """What ``role_id`` alone learns before it speaks; empty for nothing."""
        return ""

    async def env_response(self, arena: Arena, artifact: Any, state: EpisodeState) -> str:
        """What the environment says to everybody after a turn; empty for nothing."""
        return ""

    def format_heard(self, speaker: str, text: str, listener: str) -> str:
        """How ``listener`` reads what ``speaker`` said; empty for not at all."""
        return f"{speaker}: {text}"

    async def rollout(self, arena: Arena, artifact: Any, state: EpisodeState) -> EpisodeState:
        examples = functools.partial(self.get_examples, artifact=artifact, state=state)
        talk = Conversations(arena.roles, self.format_heard, examples)
        talk.announce(self.get_initial_prompt(arena, artifact, state))
        state.current_role = self.get_initial_role(artifact, state)
        turns = 0
        while True:
            role = state.current_role
            observation = self.get_observation(role, arena, artifact, state)
            reply = await self.call_model(role, talk.messages_for(role, observation), arena)
            talk.said(role, reply.text)
            turns += 1
            talk.announce(await self.env_response(arena, artifact, state))
            if self.is_done(artifact, state):
                state.done = True
                return state
            if turns == self.max_turns:
                state.truncated = True
                return state
            state.current_role = self.get_next_role(artifact, state)


class MultiTurnEpisode(ChatEpisode):
    """A :class:`ChatEpisode` of one role and an environment."""

    def get_next_role(self, artifact: Any, state: EpisodeState) -> str:
        return state.current_role
