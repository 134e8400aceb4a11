"""Endpoints that are busy, broken, silent, or say what can't be true: real servers, on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from selfplay_ray.errors import ConfigError, InferenceError
from selfplay_ray.inference.adapter_names import version_in, versioned_name
from selfplay_ray.inference.balance import IMBALANCE, RetrySettings
from selfplay_ray.inference.endpoints import Endpoints
from selfplay_ray.inference.openai_client import OpenAIClient
from selfplay_ray.types import Message, ModelCall

CALL = ModelCall((Message(role="user", content="Hi"),), "a", temperature=1.0, max_tokens=4, seed=3)
QUICK = RetrySettings(attempts=4, deadline=20.0, first_delay=0.01, longest_delay=0.05)

GOOD = {
    "choices": [
        {
            "finish_reason": "length",
            "message": {"content": "ab"},
            "token_ids": [7, 8],
            "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -0.5}]},
        }
    ],
    "prompt_token_ids": [1, 2, 3],
}


@dataclass
class Answering:
    """An endpoint that answers from a list, the last for ever; it keeps what it was asked."""

    url: str
    answers: list[tuple[int, object]]
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[dict] = field(default_factory=list)

    def next(self) -> tuple[int, object]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def answering(*answers: tuple[int, object], **headers: str) -> Iterator[Answering]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            endpoint.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = endpoint.next()
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**endpoint.headers, "Content-Length": str(len(data))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = Answering(f"http://127.0.0.1:{server.server_port}/v1", list(answers), headers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield endpoint
    server.shutdown()
    server.server_close()


def free_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_port


def changed(change: Callable[[dict], object]) -> dict:
    answer = json.loads(json.dumps(GOOD))
    change(answer)
    return answer


async def test_what_may_pass_is_tried_again():
    failures = [(status, {"error": {"message": "later"}}) for status in (429, 503, 500)]
    with answering(*failures, (200, GOOD)) as endpoint:
        async with OpenAIClient("live@v4", endpoint.url, retry=QUICK) as client:
            completion = await client.complete(CALL)
    assert completion.completion_token_ids == (7, 8)
    assert (completion.policy_version, client.get_policy_version()) == (4, 4)
    assert len(endpoint.asked) == 4
    assert len({json.dumps(body) for body in endpoint.asked}) == 1  # the same request, with its seed


async def test_what_will_not_pass_is_not():
    with answering((400, {"error": {"message": "no such thing"}})) as endpoint:
        async with OpenAIClient("m", endpoint.url, retry=QUICK) as client:
            with pytest.raises(InferenceError, match=r"/v1 answered 400: no such thing$"):
                await client.complete(CALL)
    assert len(endpoint.asked) == 1


async def test_there_is_an_end_to_trying():
    with answering((503, {"error": {"message": "down"}})) as endpoint:
        async with OpenAIClient("m", endpoint.url, retry=QUICK) as client:
            with pytest.raises(InferenceError, match=r"answered 503: down \(the last of 4 attempts\)"):
                await client.complete(CALL)
    assert len(endpoint.asked) == 4


async def test_a_server_that_asks_for_time_gets_it_up_to_the_deadline():
    with answering((429, {}), (200, GOOD), Retry_After="30") as endpoint:
        hasty = RetrySettings(attempts=4, deadline=0.5, first_delay=0.01, longest_delay=0.05)
        async with OpenAIClient("m", endpoint.url, retry=hasty) as client:
            with pytest.raises(InferenceError, match=r"no answer within 0\.5 s"):
                await client.complete(CALL)
    assert len(endpoint.asked) == 1


async def test_a_sick_endpoint_is_left_alone_while_another_is_well():
    dead = f"http://127.0.0.1:{free_port()}/v1"
    with answering((200, GOOD)) as well, answering((500, {})) as broken:
        async with OpenAIClient("m", [dead, broken.url, well.url], retry=QUICK) as client:
            for endpoint in client.endpoints.endpoints[:2]:
                endpoint.rest(0.0)
            calls = [client.complete(ModelCall(CALL.messages, None, 1.0, 4, seed)) for seed in range(20)]
            completions = await asyncio.gather(*calls)
            assert len(completions) == 20
            for endpoint in client.endpoints.endpoints[:2]:
                endpoint.rest(60.0)
            before = len(broken.asked)
            await asyncio.gather(*[client.complete(CALL) for _ in range(10)])
            assert len(broken.asked) == before
            assert len(well.asked) == 30


async def test_nobody_there_is_said():
    url = f"http://127.0.0.1:{free_port()}/v1"
    async with OpenAIClient("m", url, retry=QUICK) as client:
        with pytest.raises(InferenceError, match=rf"{url} can't be reached: .* \(the last of 4 attempts\)"):
            await client.complete(CALL)


def test_requests_of_one_prompt_stay_together_until_their_endpoint_is_far_busier():
    endpoints = Endpoints(["http://a/v1", "http://b/v1", "http://c/v1"])
    preferred = endpoints.choose("prompt")
    assert all(endpoints.choose("prompt") is preferred for _ in range(5))
    preferred.in_flight = IMBALANCE
    assert endpoints.choose("prompt") is preferred
    preferred.in_flight = IMBALANCE + 1
    assert endpoints.choose("prompt") is not preferred
    assert endpoints.choose(None) is not preferred


def test_of_the_sick_the_one_that_rested_longest_is_asked():
    endpoints = Endpoints(["http://a/v1", "http://b/v1"])
    for endpoint, seconds in zip(endpoints.endpoints, (50.0, 20.0), strict=True):
        endpoint.rest(seconds)
    assert endpoints.choose("prompt") is endpoints.endpoints[1]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (changed(lambda a: a["choices"][0].pop("token_ids")), "returned no token ids.*return_token_ids"),
        (changed(lambda a: a["choices"][0].pop("logprobs")), "returned 0 logprobs for 2 tokens"),
        (changed(lambda a: a["choices"][0]["logprobs"]["content"].pop()), "returned 1 logprobs for 2 tokens"),
        (changed(lambda a: a["choices"][0]["logprobs"]["content"][1].update(logprob=0.5)), "returned 0.5 as"),
        (changed(lambda a: a["choices"][0]["logprobs"]["content"][1].update(logprob=-9999.0)), "-9999.0 as"),
        (changed(lambda a: a.pop("prompt_token_ids")), "returned no prompt_token_ids"),
        (changed(lambda a: a["choices"][0].update(finish_reason="abort")), "finish_reason 'abort'"),
        (changed(lambda a: a["choices"].clear()), "without a choice"),
        (
            changed(lambda a: a["choices"][0].update(policy_versions=[{"start": 0, "end": 1, "version": 2}])),
            "has policy versions for 1 of them",
        ),
        ({"choices": "none"}, "answered what is no completion: choices"),
        (b"<html>", "answered what is no completion"),
    ],
)
async def test_an_answer_that_can_not_be_trained_on_is_refused(answer: object, sentence: str):
    with answering((200, answer)) as endpoint:
        async with OpenAIClient("m", endpoint.url, retry=QUICK) as client:
            with pytest.raises(InferenceError, match=sentence):
                await client.complete(CALL)
    assert len(endpoint.asked) == 1


async def test_the_version_a_server_tells_counts_before_the_names():
    spans = [{"start": 0, "end": 1, "version": 5}, {"start": 1, "end": 2, "version": 6}]
    with answering((200, changed(lambda a: a["choices"][0].update(policy_versions=spans)))) as endpoint:
        async with OpenAIClient("live@v4", endpoint.url, retry=QUICK) as client:
            completion = await client.complete(CALL)
            assert [span.version for span in completion.spans] == [5, 6]
            assert client.get_policy_version() == 6


async def test_logprobs_from_before_the_temperature_are_told_by_trying():
    def likeliest(logprob: float) -> dict:
        return {
            "choices": [{"logprobs": {"top_logprobs": [{"token_id:1": logprob}], "token_logprobs": [-9.0]}}]
        }

    # At temperature 1 and at 2: the same, so it is that of the raw logits; then different ones.
    with answering((200, likeliest(-1.2)), (200, likeliest(-1.2)), (200, GOOD)) as raw:
        async with OpenAIClient("m", raw.url, retry=QUICK) as client:
            for _ in range(2):
                with pytest.raises(InferenceError, match="--logprobs-mode processed_logprobs"):
                    await client.complete(ModelCall(CALL.messages, "a", 0.7, 4, 3))
            assert len(raw.asked) == 2  # it is found out once
            await client.complete(CALL)  # at temperature 1 they are the same thing
    with answering((200, likeliest(-1.2)), (200, likeliest(-3.4)), (200, GOOD)) as processed:
        async with OpenAIClient("m", processed.url, retry=QUICK) as client:
            await client.complete(ModelCall(CALL.messages, "a", 0.7, 4, 3))
        assert processed.asked[-1]["temperature"] == 0.7


async def test_what_a_server_might_add_on_its_own_is_switched_off():
    with answering((200, GOOD)) as endpoint:
        async with OpenAIClient("m", endpoint.url, retry=QUICK) as client:
            await client.complete(ModelCall(CALL.messages, "a", 1.0, None, seed=2**64 - 1))
    (asked,) = endpoint.asked
    assert {
        key: asked[key] for key in ("top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens")
    } == {
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": -1,  # the same 64 bits, with a sign
        "max_tokens": 256,
    }


@pytest.mark.parametrize("urls", [[], ["127.0.0.1:8000"]])
def test_an_address_is_needed(urls: list[str]):
    with pytest.raises(ConfigError):
        OpenAIClient("m", urls)


@pytest.mark.parametrize(
    ("name", "version"),
    [("live@v3", 3), ("a@b@v07", 7), ("llama-3", None), ("deepseek-v3", None), ("@v1", None)],
)
def test_a_versioned_name_tells_its_version(name: str, version: int | None):
    assert version_in(name) == version
    assert version_in(versioned_name(name, 12)) == 12
