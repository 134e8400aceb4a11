"""Who may ask, how much, and what happens to those who leave before they are answered."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from pathlib import Path

import httpx
import pytest
from server_running import Running, running_server
from waiting import until

from selfplay_ray.inference.server.app import ServerLimits

LONG = {"model": "tiny", "prompt": [5, 6], "max_tokens": 1000, "ignore_eos": True}
SHORT = {"model": "tiny", "prompt": [5, 6], "max_tokens": 2}


def until_running(server: Running, count: int) -> None:
    """Wait until that many requests are in the batch; the server must get there."""

    def there() -> bool:
        stats = server.engine.stats()
        return stats.running + stats.waiting == count

    until(there)


@pytest.mark.parametrize("body", [LONG, {**LONG, "n": 3}, {**LONG, "stop": "never said"}])
def test_hanging_up_frees_the_place(server: Running, body: dict[str, object]):
    async def leave() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            asked = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=body))
            await asyncio.to_thread(until_running, server, body.get("n", 1))
            asked.cancel()

    asyncio.run(leave())
    until_running(server, 0)


def test_leaving_a_stream_frees_the_place(server: Running):
    body = {**LONG, "stream": True, "n": 2}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: {")
        until_running(server, 2)
    until_running(server, 0)
    assert server.post("/v1/completions", SHORT).status_code == 200


def test_a_full_queue_says_so(tiny: Path):
    with (
        running_server(tiny, limits=ServerLimits(generations=2), batch=1) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(server.post, "/v1/completions", {**LONG, "n": 2, "max_tokens": 300})
        until_running(server, 2)
        full = server.post("/v1/completions", SHORT)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert full.json()["error"]["type"] == "rate_limit_error"
        assert full.headers["retry-after"] == "1"
        assert server.post("/v1/completions", {**SHORT, "n": 3}).status_code == 400  # would never fit
        assert first.result().status_code == 200
        assert server.post("/v1/completions", SHORT).status_code == 200


def test_only_who_has_the_key_is_served(tiny: Path):
    with running_server(tiny, api_key="sésame") as server:  # who has it may use any name
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sésame"}):
            given = {name: value.encode() for name, value in headers.items()}
            for method, path in (
                ("GET", "/v1/models"),
                ("GET", "/metrics"),
                ("POST", "/v1/load_lora_adapter"),
            ):
                refused = httpx.request(method, server.url + path, headers=given)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
        assert server.get("/health").status_code == 200
        key = {"Authorization": "Bearer sésame".encode()}
        named = {**key, "Host": "engine.example"}
        for headers in (key, named):
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "10.0.0.1", "[::1", "", "0.0.0.0"]
)
def test_without_a_key_a_name_that_is_not_this_machines_is_refused(server: Running, host: str):
    refused = server.get("/v1/models", Host=host)  # as a browser sends it whose DNS was made to lie
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "127.0.0.5", "[::1]:8000"])
def test_any_name_of_this_machine_will_do(server: Running, host: str):
    assert server.get("/v1/models", Host=host).status_code == 200


def test_no_other_sites_page_may_ask(server: Running):
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        httpx.options(f"{server.url}/v1/completions", headers=asked),
        server.post("/v1/completions", SHORT, Origin="http://evil.example"),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    # What a page may send anyhow, a form's types or none at all, is no request.
    for kind in ({}, {"Content-Type": "text/plain"}):
        sent = httpx.post(f"{server.url}/v1/completions", content=json.dumps(SHORT), headers=kind)
        assert sent.status_code == 400


def test_what_is_too_large_is_refused(tiny: Path):
    with running_server(tiny, limits=ServerLimits(request_bytes=1000, adapter_bytes=2000)) as server:
        large = server.post("/v1/completions", {**SHORT, "prompt": "x" * 1000})
        assert (large.status_code, large.json()["error"]["type"]) == (413, "invalid_request_error")
        assert server.post("/v1/load_lora_adapter", {"lora_name": "x" * 1500}).status_code == 400
        assert server.post("/v1/load_lora_adapter", {"lora_name": "x" * 2500}).status_code == 413

        def parts():  # a body that doesn't say how long it is
            for _ in range(20):
                yield b" " * 100

        unannounced = httpx.post(
            f"{server.url}/v1/completions", content=parts(), headers={"Content-Type": "application/json"}
        )
        assert unannounced.status_code == 413


def test_an_engine_that_stopped_is_told(tiny: Path):
    with running_server(tiny) as server:
        body = {**LONG, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            server.engine.close()
            *_, error, done = lines  # the status has been sent
        assert '"type":"server_error"' in error
        assert done == "data: [DONE]"
        for answer in (
            server.get("/health"),
            server.post("/v1/completions", SHORT),
            server.post("/v1/completions", {**SHORT, "stream": True}),
        ):
            assert answer.status_code == 503
            assert "was closed" in answer.json()["error"]["message"]
