"""Models and engines for the tests of inference."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
from collections.abc import Iterator
from pathlib import Path

import mlx.nn as nn
import pytest

from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.engine import Engine
from selfplay_ray.lora import LoRASettings
from selfplay_ray.models import load_model


@pytest.fixture(scope="session")
def chat(smollm2: Path) -> ChatTokenizer:
    return ChatTokenizer(smollm2)


@pytest.fixture(scope="session")
def real_model(smollm2: Path) -> nn.Module:
    """The real model in this thread, to check the engine's against."""
    return load_model(smollm2)[0]


@pytest.fixture(scope="session")
def tiny_model(tiny: Path) -> nn.Module:
    return load_model(tiny)[0]


@pytest.fixture(scope="session")
def engine(smollm2: Path) -> Iterator[Engine]:
    """The real model with its adapter at version 0, which has no effect; whoever changes it takes another engine."""
    with Engine(smollm2, lora=LoRASettings()) as engine:
        yield engine


@pytest.fixture
def tiny_engine(tiny: Path) -> Iterator[Engine]:
    with Engine(tiny, lora=LoRASettings(), max_batch_size=4) as engine:
        yield engine
