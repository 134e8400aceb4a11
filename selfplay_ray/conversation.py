"""Who has heard what: one conversation for each role, grown and never rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from selfplay_ray.errors import UnknownNameError
from selfplay_ray.types import Examples, Message, Role, as_turns


def as_messages(messages: str | Sequence[Message]) -> list[Message]:
    """A string is one user message."""
    return [Message(role="user", content=messages)] if isinstance(messages, str) else list(messages)


def with_examples(messages: str | Sequence[Message], examples: Examples) -> list[Message]:
    """``messages`` after ``examples``, which come after a system prompt."""
    given = as_messages(messages)
    systems = 1 if given and given[0]["role"] == "system" else 0
    return [*given[:systems], *as_turns(examples), *given[systems:]]


class Utterance(NamedTuple):
    """Something said to all; ``speaker`` None is the environment."""

    speaker: str | None
    text: str


class Conversations:
    """The shared transcript of a chat, and each role's own view of it as messages.

    A role's messages only ever grow at the end, which is what lets its tokens be reused from turn to turn.
    Whatever it heard since it last spoke, and its private observation last, become one ``user`` message,
    because chat templates want ``user`` and ``assistant`` to alternate. ``examples(role)`` is what it is shown before
    its own turns.
    """

    def __init__(
        self,
        roles: Mapping[str, Role],
        format_heard: Callable[[str, str, str], str],
        examples: Callable[[str], Examples] = lambda role_id: (),
    ) -> None:
        self._roles = roles
        self._format_heard = format_heard
        self._examples = examples
        self._transcript: list[Utterance] = []
        self._views: dict[str, list[Message]] = {}
        self._heard: dict[str, int] = {}  # how much of the transcript a role's view covers

    def announce(self, text: str) -> None:
        """The environment says something to everybody; nothing if empty."""
        if text:
            self._transcript.append(Utterance(None, text))

    def said(self, role_id: str, text: str) -> None:
        """``role_id`` answered what :meth:`messages_for` last gave it; others may have spoken meanwhile."""
        self._views[role_id].append(Message(role="assistant", content=text))
        self._transcript.append(Utterance(role_id, text))

    def messages_for(self, role_id: str, observation: str = "") -> list[Message]:
        """Everything ``role_id`` has said and heard, ending with what is new to it.

        Raises:
            UnknownNameError: there is no such role.
        """
        if role_id not in self._roles:
            raise UnknownNameError("role", role_id, self._roles)
        view = self._views.setdefault(role_id, self._beginning(role_id))
        news = [
            item.text if item.speaker is None else self._format_heard(item.speaker, item.text, role_id)
            for item in self._transcript[self._heard.get(role_id, 0) :]
            if item.speaker != role_id
        ]
        self._heard[role_id] = len(self._transcript)
        view.append(Message(role="user", content="\n\n".join(filter(None, [*news, observation]))))
        return list(view)

    def _beginning(self, role_id: str) -> list[Message]:
        system = self._roles[role_id].system_prompt
        beginning = [Message(role="system", content=system)] if system else []
        return [*beginning, *as_turns(self._examples(role_id))]
