"""Real actors, real messages, and no model: who plays what, who is lost, what is told."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import games
import pytest
import ray
from processes import actors_left
from ray import cloudpickle
from waiting import until

from selfplay_ray.actors.cluster import Cluster
from selfplay_ray.actors.faults import get
from selfplay_ray.actors.protocols import ActorContext, Handle, Peers
from selfplay_ray.actors.run import train
from selfplay_ray.actors.spec import ActorSpec
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.errors import ActorLostError, ClusterError, EpisodeError, ErrorBudgetExceeded
from selfplay_ray.rubric import Rubric
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.rollouts import RolloutRow, read_rollouts
from selfplay_ray.seeds import derive_seed
from selfplay_ray.types import Completion, EpisodeRequest, ModelCall, PolicySpan, Rollout

pytestmark = pytest.mark.usefixtures("ray_cluster")
cloudpickle.register_pickle_by_value(
    sys.modules[__name__]
)  # the actors' processes don't find the modules of tests

Config = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """However a run ends, its actors are gone."""
    yield
    assert actors_left() == []


def trees(config: RunConfig) -> list[RolloutRow]:
    return [row.tree for row in read_rollouts(config.output_dir / config.name / "rollouts.jsonl")]


def below(row: RolloutRow) -> Iterator[RolloutRow]:
    yield row
    for child in row.children:
        yield from below(child)


def test_the_configuration_reaches_the_workers(short_run: Config):
    """Chance is keyed by the run's seed, and trees may be as deep as it says."""
    config = short_run(num_steps=1, batch_size=1, seed=7, max_depth=9, error_budget=0)
    train(games.SpeakArena(artifacts=[9]), config, spec=games.modelless(config))
    (tree,) = trees(config)
    rollouts = list(below(tree))
    assert len(rollouts) == 2**10 - 1
    for rollout in rollouts:
        assert [step.text for step in rollout.steps] == [str(derive_seed(7, rollout.id, "call", 0))]


class Judge:
    """A judge of one's own. Says who judged, and counts."""

    def __init__(self, context: ActorContext) -> None:
        self.name = context.name

    async def connect(self, peers: Peers) -> None:
        pass

    async def complete(self, call: ModelCall) -> Completion:
        assert call.role_id is None
        return Completion(f"{self.name}: 0.5", (1,), (2,), (-1.0,), (PolicySpan(0, 1, 0),), "stop")


async def judged(rollout: Rollout, arena: Arena) -> dict[str, float]:
    verdict = await arena.call_model(f"How good is {rollout.steps[0].completion_text}?")
    judge, score = verdict.text.split(": ")
    rollout.extras["judge"] = judge
    return {"Speaker": float(score)}


class JudgedSpeak(games.Speak):
    rubric = Rubric([judged])


def test_a_judge_of_ones_own_is_asked_and_never_trained_on(short_run: Config):
    config = short_run(batch_size=8)
    spec = games.modelless(config, judge=ActorSpec(Judge, count=2, max_concurrency=10))
    history = train(games.SpeakArena(JudgedSpeak()), config, spec=spec)
    assert [metrics.rewards["Speaker"].mean for metrics in history] == [0.5, 0.5]
    rollouts = trees(config)
    assert {rollout.extras["judge"] for rollout in rollouts} == {"judge-0", "judge-1"}
    assert all([step.role_id for step in rollout.steps] == ["Speaker"] for rollout in rollouts)


class SlowSpeak(games.Speak):
    async def rollout(self, arena: Arena, artifact: int, state: EpisodeState) -> EpisodeState:
        await asyncio.sleep(0.5)
        return await super().rollout(arena, artifact, state)


def test_a_worker_killed_in_the_middle_costs_no_root_and_doubles_none(short_run: Config):
    config = short_run(num_steps=3, batch_size=4, rollout_workers=2, error_budget=0)
    folder = RunLog.create(config.output_dir, config.name, "test").folder
    with Cluster(games.SpeakArena(SlowSpeak(), [1]), config, folder, games.modelless(config)) as cluster:
        worker = cluster.peers.workers["worker-0"]
        first = get(worker.pid.remote())
        os.kill(first, signal.SIGKILL)
        take_steps(cluster, config.num_steps)
        cluster.finish()
        until(lambda: is_replaced(worker, first))  # by Ray; it may have come too late to play
    rollouts = [rollout.id for tree in trees(config) for rollout in below(tree)]
    roots = [f"b{batch:06d}.{index}" for batch in range(3) for index in range(4)]
    expected = [name for root in roots for name in (root, f"{root}/0/0", f"{root}/0/1")]
    assert Counter(rollouts) == Counter(expected)


def is_replaced(worker: Handle, pid: int) -> bool:
    try:
        return bool(get(worker.pid.remote()) != pid)
    except ActorLostError:  # and not there yet
        return False


class Lethal(Episode):
    async def rollout(self, arena: Arena, artifact: object, state: EpisodeState) -> EpisodeState:
        os.kill(os.getpid(), signal.SIGKILL)
        return state


def test_losing_the_last_worker_for_good_ends_the_run(short_run: Config):
    config = short_run()
    spec = games.modelless(config, worker=ActorSpec(games.SeedWorker, max_concurrency=10))
    with pytest.raises(ClusterError, match="the last rollout worker, worker-0, died and isn't restarted"):
        train(games.SpeakArena(Lethal()), config, spec=spec)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("arena", r"^an actor was lost: The actor died .*killed by `ray\.kill`"),
        (
            "engine",
            r"^the last inference engine died and isn't restarted: The actor died .*killed by `ray\.kill`",
        ),
        ("judge", r"^the last judge died and isn't restarted: The actor died .*killed by `ray\.kill`"),
    ],
)
def test_losing_what_is_not_replaced_ends_the_run_in_one_sentence(place: str, told: str, short_run: Config):
    config = short_run(num_steps=100)
    folder = RunLog.create(config.output_dir, config.name, "test").folder
    arena = games.SpeakArena(SlowSpeak())
    spec = games.modelless(config, judge=ActorSpec(Judge, max_concurrency=10))
    with Cluster(arena, config, folder, spec) as cluster:
        assert get(cluster.step(0)) is not None
        peers = cluster.peers
        lost = {"arena": peers.arena, "engine": peers.engines[0], "judge": peers.judges[0]}[place]
        ray.kill(lost)
        with pytest.raises(ClusterError, match=told):
            raise_its_failure(cluster)


def raise_its_failure(cluster: Cluster) -> None:
    while (failure := cluster.status().failure) is None:
        time.sleep(0.1)
    raise failure


def take_steps(cluster: Cluster, count: int) -> None:
    for taken in range(count):
        metrics = get(cluster.step(taken))
        assert metrics is not None, cluster.status()
        assert metrics.step == taken + 1


class Bomb:
    """Can't be sent, for a reason of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise ValueError("not me")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Faulty(games.Speak):
    """What goes wrong is its artifact."""

    async def rollout(self, arena: Arena, artifact: str, state: EpisodeState) -> EpisodeState:
        state = await super().rollout(arena, 0, state)
        state.data["fault"] = artifact
        match artifact:
            case "raises":
                raise ValueError("the dice fell off the table")
            case "deep":
                await arena.generate_rollouts([EpisodeRequest("speak", "deep")])
            case "unknown":
                await arena.generate_rollouts([EpisodeRequest("spaek")])
            case "unsendable child":
                await arena.generate_rollouts([EpisodeRequest("speak", threading.Lock())])
        return state

    def get_extras(self, state: EpisodeState) -> dict[str, Any]:
        match state.data["fault"]:
            case "lock":
                return {"lock": threading.Lock()}
            case "bomb":
                return {"bomb": Bomb()}
            case "unreadable":
                return {"unreadable": Unreadable()}
            case "nested":
                return {"nested": nested(100_000)}
        return {}


def unpickle_unreadable() -> object:
    raise LookupError("what this was made of is no longer there")


class Unreadable:
    """Can be sent, and can't be read."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return unpickle_unreadable, ()


FAULTS = {
    "fine": None,
    "raises": "the dice fell off the table",
    "deep": "would spawn children 3 deep; max_depth is 2",
    "unknown": "unknown episode type 'spaek'; known: speak",
    "unsendable child": "can't be sent to another process",
    "lock": "keep its extras, meta and info plain: cannot pickle '_thread.lock' object",
    "bomb": "keep its extras, meta and info plain",
    "nested": "keep its extras, meta and info plain",
}


def test_episodes_that_fail_are_kept_and_the_run_goes_on(short_run: Config):
    config = short_run(num_steps=1, batch_size=len(FAULTS), error_budget=1, max_depth=2)
    (metrics,) = train(games.SpeakArena(Faulty(), list(FAULTS)), config, spec=games.modelless(config))
    # "deep" failed at the bottom alone, where its grandchild asked for more
    errors = [next((row.error for row in below(tree) if row.error), None) for tree in trees(config)]
    for (fault, sentence), error in zip(FAULTS.items(), errors, strict=True):
        assert (error is None) if sentence is None else (sentence in (error or "")), fault
    assert metrics.failed == len(FAULTS) - 1
    assert (
        metrics.rewards["Speaker"].count == 1 + 2
    )  # the one that is fine, and the two above the one too deep


class SecondUnsendable:
    """Artifacts of which the first alone can be sent."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> object:
        return threading.Lock() if index else 0


def test_a_batch_that_cannot_be_sent_ends_the_run(short_run: Config):
    """The second batch, which is made in the middle of the run, when nobody waits for it to be made."""
    config = short_run(num_steps=5, batch_size=1, max_staleness=0)
    arena = games.SpeakArena(artifacts=[0])
    arena.artifacts = SecondUnsendable()
    with pytest.raises(EpisodeError) as raised:
        train(arena, config, spec=games.modelless(config))
    assert str(raised.value) == (
        "a request can't be sent to another process; keep its artifact and meta plain: "
        "cannot pickle '_thread.lock' object"
    )


def test_what_the_arena_cannot_unpickle_ends_the_run(short_run: Config):
    config = short_run(num_steps=1, batch_size=1)
    with pytest.raises(
        ClusterError,
        match=r"of worker-0 could not be read by the arena, or not be answered: .*no longer there",
    ):
        train(games.SpeakArena(Faulty(), ["unreadable"]), config, spec=games.modelless(config))


def test_above_the_error_budget_the_run_stops_and_names_the_episode(short_run: Config):
    config = short_run(num_steps=50, batch_size=8, error_budget=0.2)
    artifacts = ["fine", "fine", "raises"]
    with pytest.raises(ErrorBudgetExceeded) as raised:
        train(games.SpeakArena(Faulty(), artifacts), config, spec=games.modelless(config))
    message = str(raised.value)
    assert (
        "episodes of type 'speak' failed, more than error_budget=0.2 allows; the last was b00000" in message
    )
    assert message.endswith("ValueError: the dice fell off the table")
