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

import selfplay_ray  # noqa: F401 - puts OpenBLAS in front of MLX, whichever test file imports that first

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


STARTS_CLUSTERS = ("actors", "jobs", "test_readme.py", "test_cluster_yaml.py")
"""Where tests start Ray, which takes all cores for a while: they run one after the other, whatever runs beside them."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start clusters are one group, if the tests run in several processes."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in STARTS_CLUSTERS:
            item.add_marker(pytest.mark.xdist_group("clusters"))


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
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched into the user's cache the first time."""
    from selfplay_ray.models import resolve_model

    return resolve_model("smollm2-135m")
