"""Runs on a real cluster whose samples come from servers, too: ours, on real ports, one of them killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import games
import httpx
import pytest
import ray
from processes import actors_left
from ray import cloudpickle
from serving import models_at, serving
from waiting import until

from selfplay_ray.actors.cluster import Cluster
from selfplay_ray.actors.faults import get
from selfplay_ray.actors.run import train
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.episode import EpisodeState
from selfplay_ray.errors import ClusterError
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.engine import Engine
from selfplay_ray.lora import LoRASettings
from selfplay_ray.rubric import Rubric
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.runlog.rollouts import TreeRow, read_rollouts
from selfplay_ray.types import EpisodeRequest, Rollout

pytestmark = pytest.mark.usefixtures("ray_cluster")
cloudpickle.register_pickle_by_value(
    sys.modules[__name__]
)  # the actors' processes don't find the modules of tests

Config = Callable[..., RunConfig]
KEY = "k3y-0f-th3-3ndp01nt"
LORA = LoRASettings(rank=4, scale=2.0)  # other than the run's, whose adapters fit into it
BATCH = 8


async def judged(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """By the base model, which isn't trained."""
    verdict = await arena.call_model("Is it good?", max_tokens=3)
    rollout.extras["verdict"] = verdict.text
    return games.variety(rollout, arena)


class Judged(games.Speak):
    rubric = Rubric([judged])

    async def rollout(self, arena: Arena, artifact: int, state: EpisodeState) -> EpisodeState:
        await self.call_model("Speaker", f"Say something about {artifact}.", arena)
        return state


class ManyPrompts(games.SpeakArena):
    """Four prompts a batch, twice each: some of them prefer the engine, some the endpoint."""

    def get_batch(self) -> Sequence[EpisodeRequest]:
        return [
            EpisodeRequest("speak", 4 * self._batches + index // 2, group=f"{self._batches}-{index // 2}")
            for index in range(BATCH)
        ]


def trees(config: RunConfig) -> list[TreeRow]:
    return list(read_rollouts(config.output_dir / config.name / "rollouts.jsonl"))


def said(config: RunConfig) -> list[tuple[str, list[str], object]]:
    return [
        (tree.tree.id, [step.text for step in tree.tree.steps], tree.tree.extras["verdict"])
        for tree in trees(config)
    ]


def versions(config: RunConfig) -> set[tuple[int, int]]:
    """Which batch was sampled by which versions."""
    return {
        (tree.batch, span.version)
        for tree in trees(config)
        for step in tree.tree.steps
        for span in step.spans
    }


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.fixture
def server_engine(tiny: Path) -> Iterator[Engine]:
    with Engine(tiny, lora=LORA) as engine:
        yield engine


def check(config: RunConfig, history: list[StepMetrics]) -> None:
    assert len(history) == config.num_steps
    assert versions(config) == {(step, step) for step in range(config.num_steps)}  # staleness 0, to the token
    for metrics in history:
        assert metrics.failed == 0
        assert metrics.values["train/ratio_lag0"] < 1e-4  # so the logprobs are those of that very version
    assert not (config.output_dir / config.name / "published").exists()


def test_engines_and_endpoints_sample_the_same_and_nothing_is_left_there(
    short_run: Config, tiny: Path, server_engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(server_engine, ChatTokenizer(tiny), LORA.scale, api_key=KEY) as url:
        config = short_run(
            num_steps=3, batch_size=BATCH, max_staleness=0, error_budget=0, lora_rank=2, endpoints=(url,)
        )
        config = config.model_copy(update={"endpoint_api_key_env": "MY_KEY", "name": "mixed"})
        check(config, train(ManyPrompts(Judged()), config))
        there = server_engine.stats().generated_tokens
        assert there > 0
        assert models_at(url, Authorization=f"Bearer {KEY}") == ["tiny"]
        assert files_with(KEY, config.output_dir) == []

        alone = config.model_copy(update={"engines": 0, "name": "endpoints-only"})
        check(alone, train(ManyPrompts(Judged()), alone))
        assert server_engine.stats().generated_tokens > 2 * there  # the mixed run's engine had its share
        assert models_at(url, Authorization=f"Bearer {KEY}") == ["tiny"]
        assert said(alone) == said(config)


@contextmanager
def server_process(model: Path) -> Iterator[tuple[str, int]]:
    """`selfplay serve` in a process of its own: its address, and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "selfplay_ray.inference.server", "--model", str(model)]
    process = subprocess.Popen(
        [*command, "--lora-rank", "2", "--port", str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving")
        yield f"http://127.0.0.1:{port}/v1", process.pid
    finally:
        process.kill()
        process.communicate()


def test_an_endpoint_that_is_killed_is_done_without(short_run: Config, tiny: Path):
    with server_process(tiny) as (url, pid):
        config = short_run(num_steps=4, batch_size=BATCH, max_staleness=0, error_budget=0, endpoints=(url,))
        folder = RunLog.create(config.output_dir, config.name, "test").folder
        with Cluster(ManyPrompts(Judged()), config, folder) as cluster:
            history = [get(cluster.step(0))]
            assert get(cluster.step(0)) == history[0]  # asked again, as where the answer was lost
            endpoint = cluster.peers.engines[1]
            assert get(endpoint.stats.remote()).generated_tokens > 0
            step = cluster.step(1)
            until(lambda: get(endpoint.stats.remote()).running > 0)
            os.kill(pid, signal.SIGKILL)
            history.append(get(step))
            asked = get(endpoint.stats.remote()).generated_tokens
            history += [get(cluster.step(taken)) for taken in (2, 3)]
            assert get(endpoint.stats.remote()).generated_tokens == asked
            cluster.finish()
    check(config, history)


def test_an_endpoint_that_is_not_there_is_one_sentence_and_leaves_no_actor(short_run: Config):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    config = short_run(endpoints=(url,))
    with pytest.raises(
        ClusterError, match=rf"^the endpoint {url} can't be reached: .*; start it, or leave it out"
    ):
        train(games.SpeakArena(), config, spec=games.modelless(config))
    assert actors_left() == []
    assert not (config.output_dir / config.name).exists()


class Reporting:
    """An engine that has nothing to do but to say how it is."""

    def __init__(self) -> None:
        import asyncio

        from selfplay_ray.actors.engine_metrics import report_stats
        from selfplay_ray.inference.requests import EngineStats

        memory = {"kv_bytes": 1, "kv_capacity_bytes": 4, "prefix_queries": 2, "prefix_hits": 1}
        stats = EngineStats(running=3, swap_seconds=0.5, **memory)
        self.task = asyncio.get_event_loop().create_task(report_stats("engine-7", lambda: stats))

    async def ready(self) -> None: ...


def test_the_engines_metrics_are_served_by_their_node(ray_cluster: str):
    actor = ray.remote(Reporting).options(num_cpus=0).remote()
    get(actor.ready.remote())
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def readings() -> dict[str, float]:
        lines = [line for line in httpx.get(address).text.splitlines() if 'engine="engine-7"' in line]
        return {
            line.partition("{")[0].removeprefix("ray_selfplay_engine_"): float(line.split()[-1])
            for line in lines
        }

    until(lambda: len(readings()) == 6)
    assert readings() == {
        "running_requests": 3,
        "waiting_requests": 0,
        "tokens_per_second": 0,
        "kv_cache_usage": 0.25,
        "prefix_hit_rate": 0.5,
        "swap_seconds_total": 0.5,
    }
    ray.kill(actor)
