"""The arena: what there is to play, who plays, and how it is credited. How it gets done is its runtime's."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from selfplay_ray.artifacts import ArtifactStore
from selfplay_ray.config import RunConfig
from selfplay_ray.conversation import as_messages
from selfplay_ray.credit import CreditAssigner, GRPOCredit
from selfplay_ray.episode import Episode
from selfplay_ray.errors import ConfigError, EpisodeError, EpisodeLimitError, UnknownNameError
from selfplay_ray.execution import EpisodeRun, current_run
from selfplay_ray.records import credit_group
from selfplay_ray.runtime import LocalRuntime, ModelClient, ParentCall, Runtime
from selfplay_ray.seeds import derive_rng, derive_seed
from selfplay_ray.types import (
    Completion,
    EpisodeRequest,
    GenerateResult,
    Message,
    ModelCall,
    Role,
    RolloutGroup,
    Step,
)


@dataclass(frozen=True, slots=True)
class ArenaStep:
    """What one :meth:`Arena.step` gathered: the trees, and the groups they were credited in."""

    results: list[GenerateResult]
    groups: list[RolloutGroup]


class Arena:
    """Registers roles, episodes and stores; says what the next batch is; lets episodes speak and spawn.

    With a ``client`` it runs everything in this process (:class:`~selfplay_ray.runtime.LocalRuntime`), its
    ``judge`` answering calls without a role. Without one it is a declaration, to be handed to a cluster.
    Subclass it and override :meth:`get_batch`. It is copied to other processes when it runs on a cluster, so
    what changes during a run belongs into its stores, which stay in one place.

    ``batch_size`` is how many requests :meth:`get_batch` returns, as a run's configuration sets it; 0 if it may vary.
    ``seed`` fixes every chance; ``max_depth`` and ``max_fan_out`` bound the trees that episodes may spawn.
    """

    def __init__(
        self,
        client: ModelClient | None = None,
        credit_assigner: CreditAssigner | None = None,
        *,
        judge: ModelClient | None = None,
        batch_size: int = 0,
        seed: int = 0,
        max_depth: int = 8,
        max_fan_out: int = 1024,
    ) -> None:
        self.roles: dict[str, Role] = {}
        self.episodes: dict[str, Episode] = {}
        self.stores: dict[str, ArtifactStore] = {}
        self.credit_assigner = credit_assigner or GRPOCredit()
        self.seed = seed
        self.max_depth = max_depth
        self.max_fan_out = max_fan_out
        self.batch_size = batch_size
        self.rng = random.Random(seed)  # noqa: S311 - for sampling, not for secrets
        self._batches = 0
        self._runs = 0  # of generate_rollouts outside of any episode
        self._calls = 0
        self._runtime: Runtime | None = LocalRuntime(self, client, judge) if client else None

    # What there is

    def add_role(self, role: Role) -> None:
        """Register ``role`` under its id.

        Raises:
            ConfigError: it is trainable and greedy, so its samples would carry no gradient.
        """
        if role.trainable and role.temperature <= 0:
            raise ConfigError(
                f"role {role.id!r} has temperature {role.temperature}; a trainable role is sampled above 0 "
                "(or give it trainable=False)"
            )
        self.roles[role.id] = role

    def add_episode(self, episode_type: str, episode: Episode) -> None:
        """Register ``episode`` under ``episode_type``, the name that requests call it by."""
        self.episodes[episode_type] = episode

    def add_store(self, name: str, store: ArtifactStore | None = None) -> ArtifactStore:
        """Register ``store`` (a new one if None) under ``name``, and return it."""
        self.stores[name] = store if store is not None else ArtifactStore(seed=derive_seed(self.seed, name))
        return self.stores[name]

    def role(self, role_id: str) -> Role:
        """Raises UnknownNameError."""
        if role_id not in self.roles:
            raise UnknownNameError("role", role_id, self.roles)
        return self.roles[role_id]

    def episode(self, episode_type: str) -> Episode:
        """Raises UnknownNameError."""
        if episode_type not in self.episodes:
            raise UnknownNameError("episode type", episode_type, self.episodes)
        return self.episodes[episode_type]

    # What comes next

    def get_batch(self) -> Sequence[EpisodeRequest]:
        """The root requests of the next batch. Override it; take chance from ``self.rng``."""
        raise NotImplementedError(
            f"{type(self).__name__} must override get_batch() to say what is played next"
        )

    def next_batch(self) -> list[EpisodeRequest]:
        """:meth:`get_batch` with its chance keyed by the batch's number, checked and named.

        Raises:
            ConfigError: the batch is empty, or isn't of the configured size.
            UnknownNameError: it asks for an episode type that isn't registered.
        """
        self.rng = derive_rng(self.seed, "batch", self._batches)
        requests = [
            replace(request, id=f"b{self._batches:06d}.{index}")
            for index, request in enumerate(self._some_batch())
        ]
        if self.batch_size and len(requests) != self.batch_size:
            raise ConfigError(
                f"{type(self).__name__}.get_batch() returned {len(requests)} requests, but batch_size is "
                f"{self.batch_size}; return self.batch_size of them"
            )
        for request in requests:
            self.episode(request.episode_type)
        self._batches += 1
        return requests

    def get_eval_batch(self, episodes: int) -> Sequence[EpisodeRequest]:
        """The root requests of an evaluation of about ``episodes`` episodes, the same at every evaluation.

        As it stands, batches as in training, whole ones, with chance of their own. Override it to play what was
        held out. Chance comes from ``self.rng``; roots of one ``group`` are scored together and taken for one
        independent observation (:mod:`selfplay_ray.evaluation`), so give those that share a question a group.
        """
        requests: list[EpisodeRequest] = []
        batch = 0
        while len(requests) < episodes:
            self.rng = derive_rng(self.seed, "eval", batch)
            for request in self._some_batch():
                together = request.group is not None or self.scores_siblings
                group = group_name(batch, request.group) if together else None
                requests.append(replace(request, group=group))
            batch += 1
        return requests

    def _some_batch(self) -> Sequence[EpisodeRequest]:
        """What :meth:`get_batch` returns, which is something."""
        requests = self.get_batch()
        if not requests:
            raise ConfigError(
                f"{type(self).__name__}.get_batch() returned no requests; a batch of 0 trains nothing"
            )
        return requests

    @property
    def scores_siblings(self) -> bool:
        """Whether what a root is worth may depend on others of its group: :meth:`score_group` is overridden."""
        return type(self).score_group is not Arena.score_group

    def resolve_artifact(self, request: EpisodeRequest) -> EpisodeRequest:
        """A request without an artifact gets one from the store named like its episode type, if there is one."""
        store = self.stores.get(request.episode_type)
        if request.artifact is not None or store is None:
            return request
        return replace(request, artifact=store.sample_one(weighted=True, key=request.id).data)

    # What episodes do

    @property
    def runtime(self) -> Runtime:
        """Raises ConfigError if there is none."""
        if self._runtime is None:
            raise ConfigError("this arena has nothing to run on: give it a client, or hand it to a cluster")
        return self._runtime

    def bind(self, runtime: Runtime) -> None:
        """Let ``runtime`` do the work from now on."""
        self._runtime = runtime

    def get_policy_version(self) -> int:
        """The version of the policy that would answer now."""
        return self.runtime.get_policy_version()

    async def call_model(
        self,
        messages: str | Sequence[Message],
        role_id: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> Completion:
        """Ask the model. With a role, the answer is a step of the current rollout, in that role's sampling and
        with its system prompt; without one it is an oracle's (a judge's) and never becomes training data.

        Raises:
            UnknownNameError: no such role.
            EpisodeError: a role spoke outside its episode, or a trainable one at temperature 0.
            InferenceError: the model could not answer.
        """
        run = current_run()
        role = self.role(role_id) if role_id is not None else None
        index, seed = run.next_model_call() if run else self._next_call()
        call = ModelCall(
            messages=_with_system_prompt(messages, role),
            role_id=role_id,
            temperature=_temperature(run, role, temperature),
            max_tokens=max_tokens if max_tokens is not None else (role.max_tokens if role else None),
            seed=seed,
            priority=run.request.depth if run else 0,
        )
        if run is None or role is None:
            return await self.runtime.complete(call)
        return await self._speak(run, role, index, call)

    async def ask(
        self,
        question: str | Sequence[Message],
        key: str,
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> Completion:
        """Ask an oracle, as ``call_model`` without a role does, but with chance keyed by the question and ``key``:
        whoever asks the same, and whenever, gets the same answer.

        Raises:
            InferenceError: the model could not answer.
        """
        run = current_run()
        messages = _with_system_prompt(question, None)
        return await self.runtime.complete(
            ModelCall(
                messages=messages,
                role_id=None,
                temperature=_temperature(run, None, temperature),
                max_tokens=max_tokens,
                seed=derive_seed(self.seed, "ask", key, *(message["content"] for message in messages)),
                priority=run.request.depth if run else 0,
            )
        )

    async def _speak(self, run: EpisodeRun, role: Role, index: int, call: ModelCall) -> Completion:
        trainable = role.trainable and run.request.is_trainable
        if trainable and call.temperature <= 0:
            raise EpisodeError(
                f"role {role.id!r} was called at temperature {call.temperature} in trainable episode "
                f"{run.request.id}; sample above 0, or request the episode with is_trainable=False"
            )
        completion = await self.runtime.complete(replace(call, prefix=run.prefix_of(role.id, call.messages)))
        run.record(Step(role.id, index, list(call.messages), completion, call.temperature, trainable))
        return completion

    def _next_call(self) -> tuple[int, int]:
        self._calls += 1
        return self._calls, derive_seed(self.seed, "outside", self._calls)

    async def generate_rollouts(self, requests: Sequence[EpisodeRequest]) -> list[GenerateResult]:
        """Run ``requests`` and wait for their results, in the same order. Within an episode they are its children;
        those that a reward function asks for are never trained on.

        Raises:
            UnknownNameError: an episode type isn't registered.
            EpisodeLimitError: the tree would grow too deep or too wide.
        """
        for request in requests:
            self.episode(request.episode_type)
        run = current_run()
        if run is None:
            self._runs += 1  # a count of its own, so that an evaluation doesn't move the batches that follow
            named = [replace(request, id=f"r{self._runs:06d}.{i}") for i, request in enumerate(requests)]
            return await self.runtime.run(named, None)
        call = ParentCall(run.request.id, run.child_calls)
        results = await self.runtime.run(self._as_children(run, requests), call)
        run.children[call.number] = results
        return results

    def _as_children(self, run: EpisodeRun, requests: Sequence[EpisodeRequest]) -> list[EpisodeRequest]:
        parent, call = run.request, run.child_calls
        where, depth = f"episode {parent.episode_type!r} ({parent.id})", parent.depth + 1
        count = run.child_count + len(requests)
        if depth > self.max_depth:
            raise EpisodeLimitError(
                f"{where} would spawn children {depth} deep; max_depth is {self.max_depth}"
            )
        if count > self.max_fan_out:
            raise EpisodeLimitError(f"{where} would have {count} children; max_fan_out is {self.max_fan_out}")
        run.child_calls += 1
        run.child_count = count
        return [
            replace(
                request,
                id=f"{parent.id}/{call}/{index}",
                is_trainable=request.is_trainable and parent.is_trainable and not run.ended,
                greedy=request.greedy or parent.greedy,
            )
            for index, request in enumerate(requests)
        ]

    async def run_episode(
        self,
        episode_type: str,
        artifact: Any = None,
        meta: Mapping[str, Any] | None = None,
        is_trainable: bool = True,
    ) -> GenerateResult:
        """Run one episode; within an episode it is a child."""
        return (
            await self.generate_rollouts([EpisodeRequest(episode_type, artifact, meta or {}, is_trainable)])
        )[0]

    # What a training loop does

    async def step(self) -> ArenaStep:
        """Play the next batch and assign credit: the trees, and the groups to train on."""
        number, requests = self._batches, self.next_batch()
        results = await self.runtime.run(requests, None)
        return ArenaStep(results, self.credit(number, results))

    def credit(self, batch: int, results: Sequence[GenerateResult]) -> list[RolloutGroup]:
        """Credit root ``results`` group by group; roots without a group are one group, that of their batch."""
        groups: dict[str, list[GenerateResult]] = {}
        for result in results:
            groups.setdefault(group_name(batch, result.group), []).append(result)
        return [self.credit_group(name, members) for name, members in groups.items()]

    def credit_group(self, name: str, results: Sequence[GenerateResult]) -> RolloutGroup:
        """Credit one complete group of root results."""
        self.score_group(results)
        return credit_group(name, results, self.credit_assigner)

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        """Change the rewards of a complete group before it is credited, where a reward depends on the siblings:
        being different, being first. Override at will; as it stands it changes nothing."""

    async def on_train_start(self) -> None:
        """Called once before the first step. Override at will."""

    async def on_train_end(self) -> None:
        """Called once after the last step. Override at will."""

    # What a run keeps

    def configure(self, config: RunConfig) -> None:
        """Take over the seed (for the stores as well), the batch size and the limits of a run's configuration."""
        self.seed, self.batch_size = config.seed, config.batch_size
        for name, store in self.stores.items():
            store.seed = derive_seed(self.seed, name)
        self.max_depth, self.max_fan_out = config.max_depth, config.max_fan_out

    def fork(self) -> Self:
        """An arena like this one, with the same runtime, for playing beside the batches: it counts from the
        beginning, and has stores and baselines of its own, so that nothing it plays moves what this one does next."""
        fork, runtime = copy.copy(self), self._runtime
        fork.rng = derive_rng(self.seed, "fork")
        fork.stores = {
            name: store.fork(derive_seed(store.seed, "fork")) for name, store in self.stores.items()
        }
        fork.credit_assigner = copy.deepcopy(self.credit_assigner)
        fork._batches = fork._runs = fork._calls = 0
        fork._runtime = runtime.serving(fork) if isinstance(runtime, LocalRuntime) else runtime
        return fork

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: counters, baselines, stores."""
        return {
            "batches": self._batches,
            "runs": self._runs,
            "calls": self._calls,
            "credit": self.credit_assigner.state_dict(),
            "stores": {name: store.state_dict() for name, store in self.stores.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; the stores must be registered already."""
        self._batches, self._runs, self._calls = state["batches"], state["runs"], state["calls"]
        self.credit_assigner.load_state_dict(state["credit"])
        for name, contents in state["stores"].items():
            if name not in self.stores:
                raise UnknownNameError("store", name, self.stores)
            self.stores[name].load_state_dict(contents)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runtime": None}  # a runtime belongs to its process


def group_name(batch: int, group: str | None) -> str:
    """The name under which a root result is credited: unique in the run."""
    return f"batch-{batch:06d}" if group is None else f"batch-{batch:06d}/{group}"


def _temperature(run: EpisodeRun | None, role: Role | None, asked: float | None) -> float:
    """What was asked for, or else the role's own; 0 for a role in a greedy episode."""
    if role is None:
        return 1.0 if asked is None else asked
    if run is not None and run.request.greedy:
        return 0.0
    return role.temperature if asked is None else asked


def _with_system_prompt(messages: str | Sequence[Message], role: Role | None) -> tuple[Message, ...]:
    """A role's system prompt comes first unless there is one already."""
    given = as_messages(messages)
    if role is None or not role.system_prompt or (given and given[0]["role"] == "system"):
        return tuple(given)
    return (Message(role="system", content=role.system_prompt), *given)
