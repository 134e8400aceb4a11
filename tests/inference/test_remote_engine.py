"""An engine behind HTTP, against our server on a real port: what it samples, which versions are there, and when not."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from server_running import LORA
from serving import models_at, serving

from selfplay_ray.errors import (
    AdapterError,
    ClusterError,
    ConfigError,
    ContextLengthError,
    InferenceError,
    SelfPlayError,
    UnavailableError,
    UnknownNameError,
)
from selfplay_ray.inference import endpoint_adapters, remote_engine
from selfplay_ray.inference.adapter_folders import AdapterFolders
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.endpoints import KEYLESS, Endpoint
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.remote_engine import RemoteEngine
from selfplay_ray.inference.requests import GenerationRequest
from selfplay_ray.inference.server.app import ServerLimits

PREFIX = "run-0123abcd-live"


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    with Engine(tiny, lora=LORA, max_batch_size=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def chat(tiny: Path) -> ChatTokenizer:
    return ChatTokenizer(tiny)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "LOOK_EVERY", 0.05)


def remote(
    url: str, chat: ChatTokenizer, folder: Path, name: str = "endpoint-0", **settings: str
) -> RemoteEngine:
    return RemoteEngine(
        Endpoint(url, settings.pop("api_key", KEYLESS)),
        prefix=PREFIX,
        eos_token_ids=chat.eos_token_ids,
        folders=AdapterFolders(folder / "published", name, LORA.scale, "tiny"),
        scale=LORA.scale,
        **settings,
    )


@asynccontextmanager
async def connected(
    url: str, chat: ChatTokenizer, folder: Path, name: str = "endpoint-0"
) -> AsyncIterator[RemoteEngine]:
    engine = remote(url, chat, folder, name)
    await engine.connect([1.0])
    try:
        yield engine
    finally:
        await engine.aclose()


def weights(engine: Engine, seed: int) -> dict[str, np.ndarray]:
    """Of an adapter that changes what the model says."""
    rng = np.random.default_rng(seed)
    shapes = engine.adapter_shapes.items()
    return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes}


def request(**changes: object) -> GenerationRequest:
    usual = {
        "id": "r",
        "prompt_token_ids": (5, 6, 7, 8),
        "max_tokens": 8,
        "temperature": 1.0,
        "seed": 2**63 + 5,
    }
    return GenerationRequest(**{**usual, **changes})  # type: ignore[arg-type]


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """A server that does what ours never does; its address up to /v1. It ends when its clients have hung up."""
    tasks: list[asyncio.Task[None] | None] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        await asyncio.gather(*filter(None, tasks))


async def until(condition: object) -> None:
    async with asyncio.timeout(20):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def eventually(engine: RemoteEngine, asked: GenerationRequest):
    """The generation, from when the endpoint is well again."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(UnavailableError):
                return await engine.generate(asked)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": None},
        {},
        {"temperature": 0.0, "top_logprobs": 3},
        {"temperature": 0.7, "ignore_eos": True, "seed": 3},
    ],
)
async def test_it_samples_what_the_engine_itself_samples(
    changes: dict[str, object], engine: Engine, chat: ChatTokenizer, tmp_path: Path
):
    new = weights(engine, 1)
    await engine.load_adapter(new, 7)
    expected = await engine.generate(request(**changes))
    with serving(engine, chat, LORA.scale) as url:
        async with connected(url, chat, tmp_path) as there:
            await there.load_adapter(new, 7)
            generation = await there.generate(request(**changes))
            assert generation.token_ids == expected.token_ids
            assert generation.spans == expected.spans
            assert generation.finish_reason == expected.finish_reason
            np.testing.assert_allclose(generation.logprobs, expected.logprobs, rtol=0, atol=1e-5)
            assert [[token for token, _ in row] for row in generation.top_logprobs] == [
                [token for token, _ in row] for row in expected.top_logprobs if row
            ]
            assert there.stats().generated_tokens == len(expected.token_ids)


async def test_a_reply_ends_where_its_request_says(engine: Engine, chat: ChatTokenizer, tmp_path: Path):
    greedy = request(adapter=None, temperature=0.0, ignore_eos=True)
    said = (await engine.generate(greedy)).token_ids
    with serving(engine, chat, LORA.scale) as url:
        async with connected(url, chat, tmp_path) as there:
            ended = await there.generate(replace(greedy, stop_token_ids=said[3:4]))
            assert (ended.token_ids, ended.finish_reason) == (said[: said.index(said[3]) + 1], "stop")
            later = await there.generate(replace(greedy, stop_token_ids=said[3:4], min_tokens=6))
            assert len(later.token_ids) >= 6


async def test_a_version_is_served_by_its_own_name_until_its_last_request_is_done(
    engine: Engine, chat: ChatTokenizer, tmp_path: Path
):
    with serving(engine, chat, LORA.scale) as url:
        async with connected(url, chat, tmp_path) as there:
            first = await there.generate(request())
            assert [span.version for span in first.spans] == [0]  # the base, until a policy was loaded
            await there.load_adapter(weights(engine, 1), 1)
            assert models_at(url) == ["tiny", f"{PREFIX}@v1"]
            long = asyncio.create_task(there.generate(request(max_tokens=200, ignore_eos=True)))
            await until(lambda: engine.stats().running)
            await there.load_adapter(weights(engine, 2), 2)
            assert models_at(url) == ["tiny", f"{PREFIX}@v1", f"{PREFIX}@v2"]
            short = await there.generate(request())
            assert [span.version for span in short.spans] == [2]
            assert not long.done()
            assert {(span.start, span.end, span.version) for span in (await long).spans} == {(0, 200, 1)}
            await until(lambda: there.stats().adapters == 1)  # the endpoint's answer to the unloading is in
            assert models_at(url) == ["tiny", f"{PREFIX}@v2"]
            stats = there.stats()
            assert (stats.running, stats.swaps, stats.adapters, stats.prompt_tokens) == (0, 2, 1, 12)
        assert models_at(url) == ["tiny"]


async def test_at_the_end_what_is_asked_is_given_up_and_what_is_loaded_goes(
    engine: Engine, chat: ChatTokenizer, tmp_path: Path
):
    with serving(engine, chat, LORA.scale) as url:
        async with connected(url, chat, tmp_path) as there:
            await there.load_adapter(weights(engine, 1), 1)
            task = asyncio.create_task(there.generate(request(max_tokens=900, ignore_eos=True)))
            await until(lambda: engine.stats().running)
        with pytest.raises(UnavailableError, match="the run is over; the request was given up"):
            await task
        with pytest.raises(UnavailableError, match="the run is over"):
            await there.generate(request())
        assert models_at(url) == ["tiny"]
        await until(lambda: not engine.stats().running)  # it noticed that nobody listens


async def test_endpoints_that_read_folders_share_one(
    engine: Engine, tiny: Path, chat: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Our server takes them as vLLM does; only that it says it is ours makes a difference."""
    monkeypatch.setattr(endpoint_adapters, "OURS", "somebody else")
    published = tmp_path / "published"

    def folders() -> list[str]:
        return sorted(path.name for path in published.iterdir() if not path.name.startswith("."))

    with (
        Engine(tiny, lora=LORA) as other,
        serving(engine, chat, LORA.scale) as url,
        serving(other, chat, LORA.scale) as other_url,
    ):
        async with (
            connected(url, chat, tmp_path) as here,
            connected(other_url, chat, tmp_path, "endpoint-1") as there,
        ):
            new = weights(engine, 1)
            await asyncio.gather(here.load_adapter(new, 1), there.load_adapter(new, 1))
            assert folders() == [f"{PREFIX}@v1"]
            assert await here.generate(request()) == await there.generate(request())
            newer = weights(engine, 2)
            await here.load_adapter(newer, 2)
            await until(lambda: models_at(url) == ["tiny", f"{PREFIX}@v2"])
            assert folders() == [f"{PREFIX}@v1", f"{PREFIX}@v2"]  # the other has the old one still
            await there.load_adapter(newer, 2)
            await until(lambda: folders() == [f"{PREFIX}@v2"])
        assert folders() == []


async def test_one_that_was_away_is_asked_again_when_it_has_the_newest_version(
    engine: Engine, chat: ChatTokenizer, tmp_path: Path
):
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(engine, chat, LORA.scale))
        port = int(url.removesuffix("/v1").rpartition(":")[2])
        async with connected(url, chat, tmp_path) as there:
            await there.load_adapter(weights(engine, 1), 1)
            await there.generate(request())
            stack.close()
            with pytest.raises(UnavailableError, match=re.escape(f"{url} can't be reached")):
                await there.generate(request())
            await there.load_adapter(weights(engine, 2), 2)  # which says nothing: the run goes on without it
            with pytest.raises(UnavailableError, match=re.escape(url)):
                await there.generate(request(adapter=None))
            with serving(engine, chat, LORA.scale, port):
                generation = await eventually(there, request())
                assert [span.version for span in generation.spans] == [2]


async def test_an_adapter_that_was_lost_is_brought_again(engine: Engine, chat: ChatTokenizer, tmp_path: Path):
    with serving(engine, chat, LORA.scale) as url:
        async with connected(url, chat, tmp_path) as there:
            await there.load_adapter(weights(engine, 1), 1)
            expected = await there.generate(request())
            body = {"lora_name": f"{PREFIX}@v1"}
            assert httpx.post(f"{url}/unload_lora_adapter", json=body).status_code == 200
            assert await eventually(there, request()) == expected


async def test_one_that_says_nothing_any_more_is_given_up(
    chat: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A server whose machine has lost its power: no answer, and no end of the connection."""
    monkeypatch.setattr(endpoint_adapters, "LOOK_SECONDS", 0.1)
    models, looks = b'{"data": [{"id": "tiny"}]}', 0

    async def only_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        while line := await reader.readline():
            if line.startswith(b"GET") and (looks := looks + 1) == 1:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(models), models))

    async with answering(only_once) as url, connected(url, chat, tmp_path) as there:
        with pytest.raises(UnavailableError, match="the request was given up"):
            await there.generate(request())
        assert looks >= 1 + remote_engine.LOOKS_BEFORE_LOST


async def test_what_may_pass_elsewhere_and_what_will_not(engine: Engine, chat: ChatTokenizer, tmp_path: Path):
    with serving(engine, chat, LORA.scale, limits=ServerLimits(generations=1)) as url:
        async with connected(url, chat, tmp_path) as there:
            first = asyncio.create_task(there.generate(request(max_tokens=100, ignore_eos=True)))
            await until(lambda: engine.stats().running)
            with pytest.raises(UnavailableError, match="answered 429: 1 generations run or wait"):
                await there.generate(request())
            await first
            await there.generate(request())  # being busy is no sickness
            with pytest.raises(ContextLengthError, match=r"request r needs 1028 tokens; .* holds 1024"):
                await there.generate(request(max_tokens=1024))
            with pytest.raises(UnknownNameError, match="unknown adapter 'past'; known: live"):
                await there.generate(request(adapter="past"))
            with pytest.raises(InferenceError, match=r"answered 400: .*beyond the vocabulary") as raised:
                await there.generate(request(prompt_token_ids=(10**6,)))
            assert not isinstance(raised.value, UnavailableError)


async def test_an_adapter_that_does_not_fit_is_told_at_once(
    engine: Engine, chat: ChatTokenizer, tmp_path: Path
):
    with serving(engine, chat, LORA.scale) as url:
        async with connected(url, chat, tmp_path) as there:
            large = {
                name: np.repeat(value, 2, axis=1 if name.endswith("a") else 0)
                for name, value in weights(engine, 1).items()
            }
            with pytest.raises(
                AdapterError, match=r"answered 400: the adapter has rank 8.* doesn't take the adapter"
            ):
                await there.load_adapter(large, 1)
            with pytest.raises(UnavailableError, match="rank 8"):  # and never sampled from an older one
                await there.generate(request())


async def test_a_refusal_that_looks_like_trouble_is_told_at_once_where_no_adapter_was_ever_taken(
    engine: Engine, chat: ChatTokenizer, tmp_path: Path
):
    """vLLM answers 500 where the rank is above its --max-lora-rank."""
    bodies = {
        b"GET": (200, b'{"data": [{"id": "tiny"}]}'),
        b"POST": (500, b'{"error": {"message": "rank 4"}}'),
    }

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"content-length: (\d+)", head.lower())
            await reader.readexactly(int(length[1]) if length else 0)
            status, body = bodies[head.split()[0]]
            writer.write(b"HTTP/1.1 %d Said\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))

    async with answering(answer) as url, connected(url, chat, tmp_path) as there:
        with pytest.raises(
            AdapterError, match=r"answered 500: rank 4: it doesn't take the adapter; vLLM needs"
        ):
            await there.load_adapter(weights(engine, 1), 0)
        with pytest.raises(UnavailableError, match="rank 4"):
            await there.generate(request())


async def test_what_cannot_be_connected_to_is_one_sentence(
    engine: Engine, chat: ChatTokenizer, tmp_path: Path
):
    async def complaint(kind: type[SelfPlayError], url: str, **settings: str) -> str:
        with pytest.raises(kind) as raised:
            await remote(url, chat, tmp_path, **settings).connect()
        return str(raised.value)

    with serving(engine, chat, LORA.scale, api_key="s3cret") as url:
        said = await complaint(ClusterError, url, api_key="wr0ng")
        assert said.startswith(f"the endpoint {url} answered 401: the API key is missing or wrong")
        assert "endpoint_api_key_env" in said
        assert "wr0ng" not in said
        assert (
            await complaint(ConfigError, url, api_key="s3cret", model="gpt")
            == f"{url} serves no model 'gpt'; it has tiny"
        )
        said = await complaint(ClusterError, url.removesuffix("/v1"), api_key="s3cret")
        assert "answered 404" in said
    said = await complaint(ClusterError, url)
    assert said.startswith(f"the endpoint {url} can't be reached: ")
    assert said.endswith("; start it, or leave it out of endpoints")
