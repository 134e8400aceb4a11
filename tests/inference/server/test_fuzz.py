"""Whatever is sent, the answer is one: in OpenAI's shape, never the server's own fault, and nothing is left running.

``FUZZ_EXAMPLES`` says how many requests each route gets.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_strategies import bodies
from server_running import Running, running_server

from selfplay_ray.inference.server.app import ServerLimits

POSTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/inference/v1/generate",
    "/tokenize",
    "/detokenize",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
JSON = {"Content-Type": "application/json"}
FEW = ("/v1/chat/completions", "/v1/completions", "/inference/v1/generate")


@pytest.fixture(scope="module")
def fuzzed(tiny: Path) -> Iterator[tuple[Running, httpx.Client]]:
    """A server that takes few generations at once, so that no example takes long."""
    limits = ServerLimits(generations=4)
    with running_server(tiny, limits=limits) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        yield server, http


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert "server_error" not in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"]
        assert set(error) == {"message", "type", "param", "code"}


def shorter(body: object, path: str) -> object:
    """The same request, for fewer tokens and choices, and of the model that there is."""
    if path not in FEW or not isinstance(body, dict):
        return body
    sampling = body.get("sampling_params") if path == "/inference/v1/generate" else body
    if isinstance(sampling, dict):
        for key, most in (("max_tokens", 3), ("max_completion_tokens", 3), ("n", 2)):
            if isinstance(sampling.get(key), int):
                sampling[key] = min(sampling[key], most)
        sampling.setdefault("max_tokens", 3)
    return {key: value for key, value in body.items() if key != "model"}


@pytest.mark.parametrize("path", POSTS)
def test_no_request_of_the_documents_shape_is_the_servers_fault(
    fuzzed: tuple[Running, httpx.Client], path: str
):
    server, http = fuzzed
    document = http.get("/openapi.json").json()
    assert set(POSTS) == {path for path, methods in document["paths"].items() if "post" in methods}
    statuses: Counter[int] = Counter()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(bodies(document, path))
    def fuzz(body: object) -> None:
        answer = http.post(path, content=json.dumps(shorter(body, path)), headers=JSON)
        check(answer)
        statuses[answer.status_code] += 1

    fuzz()
    assert server.engine.stats().running == 0
    if path in (*FEW, "/tokenize", "/detokenize"):
        assert statuses[200] > 0, statuses  # it did get past the door
    assert http.get("/health").status_code == 200


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(POSTS),
    st.binary(max_size=40),
    st.sampled_from([JSON, {}, {"Content-Type": "text/plain"}]),
)
def test_bytes_that_are_no_request(
    fuzzed: tuple[Running, httpx.Client], path: str, body: bytes, headers: dict
):
    check(fuzzed[1].post(path, content=body, headers=headers))


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "\\udfff": 1}',
        b'{"prompt": "x", "model": "\\ud800"}',
        b'{"prompt": "x", "stop": "\\ud800"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "temperature": 1e-300}',
        b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}",
        b'{"prompt": []}',
        b'{"prompt": [[]]}',
        b'{"prompt": ""}',
        b'{"prompt": [49152]}',
        b'{"prompt": [1, "a"]}',
        b'{"prompt": "x", "max_tokens": 2000}',
        b'{"prompt": "x", "min_tokens": 20}',
        b'{"prompt": "x", "n": 128, "max_tokens": 1}',
        b'{"prompt": "x", "echo": true}',
        b'{"prompt": "x", "prompt_logprobs": 1}',
        b'{"prompt": "x", "temprature": 1}',
        b"null",
        b"",
    ],
)
def test_what_is_wrong_is_the_clients_and_is_named(fuzzed: tuple[Running, httpx.Client], body: bytes):
    answer = fuzzed[1].post("/v1/completions", content=body, headers=JSON)
    check(answer)
    assert answer.status_code in (400, 404)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/tokenize", 405)])
def test_there_is_no_such_route(fuzzed: tuple[Running, httpx.Client], method: str, path: str, status: int):
    answer = fuzzed[1].request(method, path)
    check(answer)
    assert answer.status_code == status
    assert path in answer.json()["error"]["message"]
