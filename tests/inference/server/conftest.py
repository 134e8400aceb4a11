"""Servers for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from server_running import Running, running_server


@pytest.fixture(scope="session")
def server(tiny: Path) -> Iterator[Running]:
    """Shared by the tests: whoever loads an adapter unloads it."""
    with running_server(tiny) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's own client; it must not paper over errors by asking again."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
