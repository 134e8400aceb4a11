"""What moves through the system: messages, completions, steps, rollouts, trees of results, training records.

An *episode request* asks for one run of an episode. The run leaves a *rollout* (what was said and what it
was worth); with the rollouts of the episodes it spawned it forms a *generate result*, a tree. Each thing a
trainable role said in it becomes a *training record*, tokens in and tokens out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from selfplay_ray.errors import InferenceError, TrainingError


class Message(TypedDict):
    """One message of a chat, in the shape every chat template takes."""

    role: str
    content: str


Examples = Iterable[tuple[str, str]]
"""What was asked and what was answered: shown to a role before its own turn."""


def as_turns(examples: Examples) -> list[Message]:
    """``examples`` as the turns of a conversation."""
    return [
        Message(role=role, content=text)
        for asked, answered in examples
        for role, text in (("user", asked), ("assistant", answered))
    ]


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Role:
    """A trainable entity: who speaks, and how it is sampled.

    ``temperature`` is that of the softmax the tokens are drawn from; a trainable role needs one above 0.
    ``max_tokens`` bounds one completion; None leaves it to the run's default.
    A role with ``trainable=False`` plays, and is never trained on.
    """

    id: str
    system_prompt: str = ""
    temperature: float = 1.0
    max_tokens: int | None = None
    trainable: bool = True

    def build_messages(self, user_content: str, history: Sequence[Message] | None = None) -> list[Message]:
        """The system prompt (if any), then ``history``, then ``user_content`` as the user's message."""
        system = [Message(role="system", content=self.system_prompt)] if self.system_prompt else []
        return [*system, *(history or ()), Message(role="user", content=user_content)]


@dataclass(frozen=True, slots=True)
class PolicySpan:
    """Completion tokens ``start`` to ``end`` (exclusive) were sampled by policy ``version``."""

    start: int
    end: int
    version: int


@dataclass(frozen=True, slots=True)
class TokenPrefix:
    """The first ``messages`` messages of a conversation are exactly these tokens, already run or sampled.

    ``ended`` says that the last of them is the end-of-turn token; a reply cut off by its token limit lacks it.
    """

    token_ids: tuple[int, ...]
    messages: int
    ended: bool


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One completion asked of a model.

    ``seed`` (64 bits) fixes the sample whatever else is being decoded. ``role_id`` is None for a judge's call.
    ``prefix`` holds the tokens of the conversation so far, so that text is never tokenized twice.
    A call of higher ``priority`` is served first: the depth of its episode in the tree.
    """

    messages: tuple[Message, ...]
    role_id: str | None
    temperature: float
    max_tokens: int | None
    seed: int
    prefix: TokenPrefix | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said, with everything training needs to know about it.

    ``completion_token_ids`` includes the end-of-turn token when ``finish_reason`` is "stop".
    ``completion_logprobs[i]`` is log p(token i) under the distribution it was drawn from (temperature applied).
    ``spans`` cover all the tokens, in order, because weights may change while a completion is being sampled.
    ``extended`` is False where the chat template broke the given prefix and the prompt was tokenized anew.

    Raises:
        InferenceError: a logprob or a version is missing.
    """

    text: str
    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    completion_logprobs: tuple[float, ...]
    spans: tuple[PolicySpan, ...]
    finish_reason: FinishReason
    extended: bool = True

    def __post_init__(self) -> None:
        tokens = len(self.completion_token_ids)
        if len(self.completion_logprobs) != tokens:
            raise InferenceError(
                f"a completion of {tokens} tokens came with {len(self.completion_logprobs)} logprobs; "
                "training needs one for every token"
            )
        check_spans(self.spans, tokens, "a completion")

    @property
    def completion(self) -> list[Message]:
        """The reply as a list of one assistant message."""
        return [Message(role="assistant", content=self.text)]

    @property
    def policy_version(self) -> int:
        """The oldest policy that sampled a token of it."""
        return min(span.version for span in self.spans)


ModelResponse = Completion  # the seed's name


def check_spans(spans: Sequence[PolicySpan], tokens: int, owner: str) -> None:
    """Raise InferenceError unless ``spans`` cover tokens 0 to ``tokens`` without gap or overlap."""
    position = 0
    for span in spans:
        if span.start != position or span.end <= span.start:
            break
        position = span.end
    if position != tokens or not spans:
        raise InferenceError(f"{owner} of {tokens} tokens has policy versions for {position} of them")


@dataclass(slots=True)
class Step:
    """One thing one role said: the messages it saw, what it answered, and the tokens of both.

    ``index`` is its place among the model calls of its rollout; ``advantage`` is set by ``apply_credit``.
    """

    role_id: str
    index: int
    prompt: list[Message]
    response: Completion
    temperature: float
    trainable: bool = True
    reward: float = 0.0
    advantage: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def completion(self) -> list[Message]:
        return self.response.completion

    @property
    def completion_text(self) -> str:
        return self.response.text

    @property
    def prompt_text(self) -> str:
        return "\n".join(message["content"] for message in self.prompt)

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return self.response.prompt_token_ids

    @property
    def completion_token_ids(self) -> tuple[int, ...]:
        return self.response.completion_token_ids

    @property
    def completion_logprobs(self) -> tuple[float, ...]:
        return self.response.completion_logprobs


@dataclass(slots=True)
class Rollout:
    """One run of one episode.

    ``id`` is that of its request: ``root/call/index``, so a child's begins with its parent's.
    ``error`` holds the traceback of an episode that raised; such a rollout is kept and shown, never trained on.
    ``unscored`` are roles of which nobody could tell what they were worth: they have no reward, and nothing they said
    is trained on. ``truncated`` says that a limit on turns ended it, not its own rules.
    Times are in seconds since the epoch.
    """

    id: str
    episode_type: str
    artifact: Any = None
    meta: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)
    unscored: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    started_at: float = 0.0
    ended_at: float = 0.0
    truncated: bool = False
    error: str | None = None

    @property
    def roles(self) -> list[str]:
        """The roles that spoke, in order of their first words."""
        return list(dict.fromkeys(step.role_id for step in self.steps))

    @property
    def advantages(self) -> dict[str, float]:
        """The advantage of each role that isn't unscored: the mean over its steps."""
        by_role: dict[str, list[float]] = {}
        for step in self.steps:
            if step.role_id not in self.unscored:
                by_role.setdefault(step.role_id, []).append(step.advantage)
        return {role: sum(values) / len(values) for role, values in by_role.items()}

    @property
    def learning_steps(self) -> list[Step]:
        """The steps there is something to learn from: those of trainable roles that were scored."""
        return [step for step in self.steps if step.trainable and step.role_id not in self.unscored]

    def leave_unscored(self, *roles: str) -> None:
        """Say that nobody could tell what ``roles`` were worth, whatever reward they had."""
        for role in roles:
            self.rewards.pop(role, None)
            if role not in self.unscored:
                self.unscored.append(role)


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """Asks for one run of ``episode_type`` on ``artifact``.

    ``artifact`` None lets the arena choose one (``Arena.resolve_artifact``). Siblings of one ``group`` are
    compared with each other; without a group, all children of one parent are, and all roots of one batch.
    Nothing below a request with ``is_trainable=False`` is trained on, or moves a baseline. In and below a
    ``greedy`` one every role speaks at temperature 0, which no trainable one may.
    ``id`` is given by whoever schedules it.
    """

    episode_type: str
    artifact: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    is_trainable: bool = True
    group: str | None = None
    id: str = ""
    greedy: bool = False

    @property
    def depth(self) -> int:
        """0 for a root, 1 for its children, and so on: an id gains two parts a level."""
        return self.id.count("/") // 2


@dataclass(slots=True)
class GenerateResult:
    """A tree: one rollout, and the results of the episodes it spawned, in the order it asked for them."""

    rollout: Rollout
    children: list[GenerateResult] = field(default_factory=list)
    is_trainable: bool = True
    group: str | None = None

    @property
    def rewards(self) -> dict[str, float]:
        return self.rollout.rewards

    def all_results(self) -> Iterator[GenerateResult]:
        """This result and everything below it, parents first."""
        yield self
        for child in self.children:
            yield from child.all_results()

    def all_rollouts(self) -> list[Rollout]:
        """The rollouts of the whole tree, parents first."""
        return [result.rollout for result in self.all_results()]


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """One completion to learn from, exactly as it was sampled.

    ``logprobs[i]`` is the behaviour logprob of completion token i at ``temperature``; ``action_mask[i]`` says
    whether token i is trained on; ``advantage`` belongs to all of them.

    Raises:
        TrainingError: lengths differ, or the completion is empty.
    """

    id: str
    role_id: str
    rollout_id: str
    episode_type: str
    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    action_mask: tuple[bool, ...]
    spans: tuple[PolicySpan, ...]
    temperature: float
    reward: float
    advantage: float

    def __post_init__(self) -> None:
        lengths = {len(self.completion_token_ids), len(self.logprobs), len(self.action_mask)}
        if len(lengths) != 1 or 0 in lengths:
            raise TrainingError(
                f"record {self.id} has {len(self.completion_token_ids)} tokens, {len(self.logprobs)} logprobs "
                f"and a mask of {len(self.action_mask)}; they must be equal and more than 0"
            )
        if not self.prompt_token_ids:
            raise TrainingError(f"record {self.id} has an empty prompt")

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Prompt and completion, as the model reads them."""
        return self.prompt_token_ids + self.completion_token_ids

    @property
    def policy_version(self) -> int:
        """The oldest policy that sampled a token of it, which is what staleness looks at."""
        return min(span.version for span in self.spans)


@dataclass(frozen=True, slots=True)
class RoleStats:
    """How one role fared in one group: rewards over its trainable rollouts."""

    count: int
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """Trees that were credited together: the unit that is put into the replay queue, or not at all.

    ``roots`` counts its root requests, also those that failed: what the pace of the run is counted in.
    ``rewards`` is keyed by role; ``metrics`` by the rubrics' and the credit's own names.
    """

    id: str
    roots: int
    records: tuple[TrainingRecord, ...]
    rewards: Mapping[str, RoleStats]
    metrics: Mapping[str, float]
