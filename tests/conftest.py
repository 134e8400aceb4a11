"""What all tests share: the environment Ray starts in, one Ray, one real model, hypothesis' profile."""

from __future__ import annotations

import logging
import os

# Before anything imports ray or mlx.
os.environ.update(
    RAY_AUTH_MODE="disabled",  # on loopback, and gone with the tests; without it Ray leaves a token file behind
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # silences a warning about a coming default
    OPENBLAS_NUM_THREADS="1",  # processes that share cores spin against each other
    WANDB_MODE="offline",
)

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from processes import REPOSITORY
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

import selfplay_ray  # noqa: F401 - puts OpenBLAS in front of MLX, whichever test file imports that first

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


STARTS_CLUSTERS = (
    "tests/actors/",
    "tests/jobs/",
    "tests/test_readme.py",
    "tests/test_cluster_yaml.py",
)
"""Where tests start Ray, which takes all cores for a while: they run one after the other, whatever runs beside them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Run in several processes, tests that start clusters stay in one, those that disturb them in one, and so do those
    that look whether a sandbox is left anywhere on the machine."""

    class SomeTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            for room in ("tests/chaos/", "tests/sandbox/"):
                if nodeid.startswith(room):
                    return room
            return "clusters" if nodeid.startswith(STARTS_CLUSTERS) else nodeid

    return SomeTogether(config, log)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One Ray for all tests that ask for it; its namespace. Actors in tests take `num_cpus=0`."""
    import ray

    namespace = "selfplay-tests"
    ray.init(
        "local",  # also where another cluster runs on this machine
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
        namespace=namespace,
    )
    yield namespace
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer llama of random weights."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """That of a process which finds this working tree, and no cluster."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched into the user's cache the first time."""
    from selfplay_ray.models import resolve_model

    return resolve_model("smollm2-135m")
