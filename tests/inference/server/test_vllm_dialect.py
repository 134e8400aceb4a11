"""What vLLM adds to OpenAI's API."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from pathlib import Path

import pytest
from server_running import Running, running_server

import selfplay_ray
from selfplay_ray.inference.requests import GenerationRequest
from selfplay_ray.types import Message

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "seed": 1}


def test_tokens_in_tokens_out(server: Running):
    prompt = [5, 6, 7, 8]
    sampling = {"max_tokens": 7, "seed": 9, "temperature": 0.8, "logprobs": 1, "n": 2}
    answer = server.post(
        "/inference/v1/generate", {"token_ids": prompt, "sampling_params": sampling, "request_id": "mine"}
    ).json()
    assert answer["request_id"] == "mine"
    for index, choice in enumerate(answer["choices"]):
        asked = GenerationRequest("direct", tuple(prompt), 7, 0.8, 9 + index, adapter=None)
        direct = asyncio.run(server.engine.generate(asked))
        assert choice["token_ids"] == list(direct.token_ids)
        content = choice["logprobs"]["content"]
        assert [entry["logprob"] for entry in content] == pytest.approx(direct.logprobs, abs=1e-5)
        assert [entry["token"] for entry in content] == [f"token_id:{token}" for token in direct.token_ids]


def test_tokens_out_as_they_are_sampled(server: Running):
    sampling = {"seed": 9, "logprobs": 1, "n": 2, "max_tokens": 5}
    asked = {"token_ids": [5, 6, 7], "sampling_params": sampling, "request_id": "mine"}
    whole = server.post("/inference/v1/generate", asked).json()
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = stream(server, "/inference/v1/generate", {**asked, "stream": True, "stream_options": options})
    assert {event["request_id"] for event in events} == {"mine"}
    for choice in whole["choices"]:
        mine = [event for event in events[:-1] if event["choices"][0]["index"] == choice["index"]]
        parts = [event["choices"][0] for event in mine]
        assert [token for part in parts for token in part["token_ids"]] == choice["token_ids"]
        content = [entry for part in parts for entry in part["logprobs"]["content"]]
        assert [e["logprob"] for e in content] == pytest.approx(
            [e["logprob"] for e in choice["logprobs"]["content"]], abs=1e-5
        )
        assert [part.get("finish_reason") for part in parts] == [None] * (len(parts) - 1) + ["length"]
        assert parts[-1]["policy_versions"] == choice["policy_versions"]
        so_far = list(itertools.accumulate(len(part["token_ids"]) for part in parts))
        assert [event["usage"]["completion_tokens"] for event in mine] == so_far
    assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 3 + 2 * 5)
    assert whole["usage"] == events[-1]["usage"]


def test_tokens_without_max_tokens_fill_the_context(server: Running):
    asked = {"token_ids": [5] * 1000, "sampling_params": {"ignore_eos": True}}
    (choice,) = server.post("/inference/v1/generate", asked).json()["choices"]
    assert len(choice["token_ids"]) == 24


def stream(server: Running, path: str, body: object) -> list[dict]:
    """What the server sent, event by event."""
    *events, done = server.post(path, body).text.strip().split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_text_becomes_tokens_and_text_again(server: Running):
    text = "Hello <|im_end|> wörld"
    tokens = server.post("/tokenize", {"model": "tiny", "prompt": text, "return_token_strs": True}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == 1024
    assert "<|im_end|>" in tokens["token_strs"]
    assert server.post("/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": text}


def test_a_long_text_becomes_the_same_tokens(server: Running):
    text = "Hello <|im_end|> wörld. " * 1500
    asked = {"prompt": text, "return_token_strs": True}
    tokens = server.post("/tokenize", asked).json()
    assert tokens["tokens"] == list(server.chat.encode_text(text))
    assert tokens["token_strs"][:3] == ["Hello", " ", "<|im_end|>"]
    assert server.post("/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": text}
    messages = [{"role": "user", "content": text}]
    chat = server.post("/tokenize", {"messages": messages}).json()["tokens"]
    assert chat == list(server.chat.encode([Message(role="user", content=text)])[0])


def test_a_chat_becomes_the_tokens_it_is_answered_from(server: Running):
    tokens = server.post("/tokenize", {"messages": CHAT["messages"]}).json()["tokens"]
    answer = server.post("/v1/chat/completions", {**CHAT, "return_token_ids": True}).json()
    assert answer["prompt_token_ids"] == tokens
    parts = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
    assert server.post("/tokenize", {"messages": parts}).json()["tokens"] == tokens


def test_a_token_that_was_named_ends_the_reply(server: Running):
    whole = server.post("/v1/chat/completions", {**CHAT, "return_token_ids": True}).json()["choices"][0]
    end = whole["token_ids"][3]
    assert end not in whole["token_ids"][:3]
    asked = {**CHAT, "return_token_ids": True, "stop_token_ids": [end]}
    ended = server.post("/v1/chat/completions", asked).json()["choices"][0]
    assert ended["token_ids"] == whole["token_ids"][:4]
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", end)
    # Its text is left out, as the end of the turn's is, unless asked for.
    assert whole["message"]["content"].startswith(ended["message"]["content"])
    shown = server.post("/v1/chat/completions", {**asked, "include_stop_str_in_output": True}).json()
    assert len(shown["choices"][0]["message"]["content"]) > len(ended["message"]["content"])
    # Before min_tokens it has probability 0, as if it did not exist.
    later = server.post("/v1/chat/completions", {**asked, "min_tokens": 5}).json()["choices"][0]
    assert end not in later["token_ids"][:5]
    assert len(later["token_ids"]) >= 5


def test_the_end_of_the_turn_ends_a_reply_unless_it_is_ignored(server: Running, tiny: Path, tmp_path: Path):
    asked = {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 8, "seed": 1, "logprobs": 0}}
    whole = server.post("/inference/v1/generate", asked).json()["choices"][0]["token_ids"]
    # The same model, but its end of turn is what it says third.
    shutil.copytree(tiny, tmp_path / "ending")
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "ending" / "config.json").write_text(json.dumps({**config, "eos_token_id": whole[2]}))
    with running_server(tmp_path / "ending") as ending:
        answer = ending.post("/inference/v1/generate", asked).json()["choices"][0]
        assert (answer["token_ids"], answer["finish_reason"]) == (whole[:3], "stop")
        assert answer["stop_reason"] is None  # the end of the turn needs no reason
        asked["sampling_params"]["ignore_eos"] = True
        ignoring = ending.post("/inference/v1/generate", asked).json()["choices"][0]
        assert (ignoring["token_ids"], ignoring["finish_reason"]) == (whole, "length")
        asked["sampling_params"].update(ignore_eos=False, min_tokens=4)
        later = ending.post("/inference/v1/generate", asked).json()["choices"][0]["token_ids"]
        assert later[:2] == whole[:2]
        assert whole[2] not in later[:4]


def test_health_and_version(server: Running):
    assert server.get("/health").status_code == 200
    assert server.get("/version").json() == {
        "version": selfplay_ray.__version__,
        "logprobs_mode": "processed_logprobs",
    }
