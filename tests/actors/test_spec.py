from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from selfplay_ray.actors.spec import ActorSpec, ClusterSpec
from selfplay_ray.actors.supervision import PULSE
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError


class Anything:
    async def connect(self, peers: object) -> None: ...


class Unconnected:
    pass


def test_a_spec_becomes_rays_options():
    spec = ActorSpec(
        Anything,
        num_cpus=0.5,
        max_restarts=-1,
        max_task_retries=5,
        threads=3,
        max_concurrency=7,
        env={"A": "b"},
    )
    assert spec.options() == {
        "num_cpus": 0.5,
        "num_gpus": 0,
        "max_restarts": -1,
        "max_task_retries": 5,
        "max_concurrency": 7,
        "runtime_env": {"env_vars": {"OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "3", "A": "b"}},
    }


def test_without_threads_or_variables_it_takes_a_process_that_ray_has_ready():
    assert "runtime_env" not in ActorSpec(Anything).options()
    assert ActorSpec(Anything, env={"A": "b"}).options()["runtime_env"] == {"env_vars": {"A": "b"}}


def test_methods_that_are_answered_beside_the_work_get_a_thread_of_their_own():
    assert ClusterSpec.from_config(RunConfig()).learner.options()["concurrency_groups"] == {PULSE: 1}


def test_a_class_without_async_methods_gets_no_concurrency():
    assert "max_concurrency" not in ActorSpec(Anything).options()


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: ActorSpec(Anything()), "give a class, not an instance or a name"),  # type: ignore[arg-type]
        (lambda: ActorSpec(Unconnected), r"Unconnected has no method connect\(peers\)"),
        (lambda: ActorSpec(Anything, count=-1), "ActorSpec of Anything has count -1; give 0 or more"),
    ],
)
def test_a_spec_that_is_none_is_refused(made: Any, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        made()


@pytest.mark.parametrize(
    ("place", "count", "sentence"),
    [
        ("learner", 2, "a cluster has exactly one learner; its ActorSpec asks for 2"),
        ("arena", 0, "a cluster has exactly one arena; its ActorSpec asks for 0"),
        ("worker", 0, "a cluster needs at least one worker; its ActorSpec asks for 0"),
        ("engine", 0, "a cluster needs at least one engine or endpoint; its ActorSpecs ask for 0"),
    ],
)
def test_a_cluster_that_could_not_run_is_refused(place: str, count: int, sentence: str):
    spec = ClusterSpec.from_config(RunConfig())
    with pytest.raises(ConfigError, match=sentence):
        replace(spec, **{place: ActorSpec(Anything, count)})


def test_what_computes_at_the_same_time_shares_the_cpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    overlapping = ClusterSpec.from_config(RunConfig(engines=2, judges=1, max_staleness=1))
    assert (overlapping.learner.threads, overlapping.engine.threads, overlapping.judge.threads) == (2, 2, 2)
    alternating = ClusterSpec.from_config(RunConfig(engines=1, max_staleness=0))
    assert (alternating.learner.threads, alternating.engine.threads) == (8, 8)
    assert (overlapping.engine.count, overlapping.judge.count, overlapping.worker.count) == (2, 1, 1)
    elsewhere = ClusterSpec.from_config(RunConfig(engines=0, endpoints=("http://there/v1",), max_staleness=0))
    assert (elsewhere.engine.count, elsewhere.endpoint.count, elsewhere.learner.threads) == (0, 1, 8)
