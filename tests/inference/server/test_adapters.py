"""Adapters over HTTP: from disk and in the request, checked before anything changes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save
from server_running import LORA, Running, running_server

from selfplay_ray.inference.peft import save_peft, to_peft
from selfplay_ray.inference.requests import GenerationRequest
from selfplay_ray.lora import save_adapter

ASK = {"prompt": [5, 6, 7], "max_tokens": 6, "seed": 1, "return_token_ids": True, "logprobs": 0}
LONG = 300


def in_base64(weights: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> str:
    return base64.b64encode(save(weights, metadata=metadata)).decode()


def ask(server: Running, model: str, **more: object) -> dict:
    answer = server.post("/v1/completions", {"model": model, **ASK, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


@pytest.fixture(autouse=True)
def unloaded(server: Running) -> Iterator[None]:
    yield
    for model in server.get("/v1/models").json()["data"]:
        if model["parent"]:
            server.post("/v1/unload_lora_adapter", {"lora_name": model["id"]})


def test_an_adapter_from_the_learners_file_one_from_peft_and_one_in_the_request_say_the_same(
    server: Running, tmp_path: Path
):
    weights = server.adapter(seed=1)
    save_adapter(tmp_path / "adapter.safetensors", weights, LORA, version=12)
    save_peft(tmp_path / "peft", weights, LORA.scale, "tiny")
    base = ask(server, "tiny")
    ways = [
        ({"lora_path": str(tmp_path / "adapter.safetensors")}, 12),
        ({"lora_path": str(tmp_path)}, 12),  # the folder of a checkpoint
        ({"lora_path": str(tmp_path / "peft"), "policy_version": 3}, 3),
        ({"lora_weights": in_base64(weights), "policy_version": 4}, 4),
        (
            {
                "lora_weights": in_base64(to_peft(weights)),
                "lora_config": {"r": LORA.rank, "lora_alpha": LORA.scale * LORA.rank},
                "policy_version": 5,
            },
            5,
        ),
    ]
    said = []
    for way, version in ways:
        loaded = server.post("/v1/load_lora_adapter", {"lora_name": "live", **way})
        assert (loaded.status_code, loaded.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        choice = ask(server, "live")
        assert choice["policy_versions"] == [{"start": 0, "end": 6, "version": version}]
        said.append((choice["token_ids"], choice["logprobs"]["token_logprobs"]))
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "live"}).status_code == 200
    assert all(tokens == said[0][0] for tokens, _ in said)
    assert all(logprobs == pytest.approx(said[0][1], abs=1e-5) for _, logprobs in said)
    assert base["logprobs"]["token_logprobs"] != pytest.approx(said[0][1], abs=0.01)
    again = ask(server, "tiny")  # unloading leaves the base as it was
    assert (again["token_ids"], again["policy_versions"][0]["version"]) == (base["token_ids"], 0)


def test_an_adapter_is_a_model_whose_parent_is_the_base(server: Running):
    weights = in_base64(server.adapter())
    server.post("/v1/load_lora_adapter", {"lora_name": "live@v7", "lora_weights": weights})
    base, live = server.get("/v1/models").json()["data"]
    assert (live["id"], live["parent"], live["policy_version"]) == ("live@v7", base["id"], 7)


def test_loading_again_needs_load_inplace(server: Running):
    assert load(server, "live", 0).status_code == 200
    first = ask(server, "live")
    assert load(server, "live", 1).status_code == 400
    assert ask(server, "live")["policy_versions"] == first["policy_versions"]
    assert load(server, "live", 1, load_inplace=True).status_code == 200
    second = ask(server, "live")
    assert second["policy_versions"][0]["version"] == first["policy_versions"][0]["version"] + 1
    assert second["logprobs"] != first["logprobs"]


def load(server: Running, name: str, seed: int, **more: object) -> httpx.Response:
    body = {"lora_name": name, "lora_weights": in_base64(server.adapter(seed)), **more}
    return server.post("/v1/load_lora_adapter", body)


def test_several_adapters_and_the_base_at_once_say_what_each_says_alone(server: Running):
    for seed, name in enumerate(("a", "b", "c@v7")):
        assert load(server, name, seed).status_code == 200
    models = {"tiny": None, "a": "a", "b": "b", "c@v7": "c@v7"}

    def asked(model: str) -> dict:
        return ask(server, model, max_tokens=24, ignore_eos=True)

    alone = {}
    for model, adapter in models.items():
        request = GenerationRequest("alone", (5, 6, 7), 24, 1.0, 1, ignore_eos=True, adapter=adapter)
        alone[model] = asyncio.run(server.engine.generate(request))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(asked, [*models, *models]))
    for model, choice in zip([*models, *models], together, strict=True):
        assert choice["token_ids"] == list(alone[model].token_ids)
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(alone[model].logprobs, abs=1e-4)
        assert choice["policy_versions"] == [
            {"start": 0, "end": 24, "version": alone[model].spans[0].version}
        ]
    assert len({generation.token_ids for generation in alone.values()}) == 4
    versions = [model["policy_version"] for model in server.get("/v1/models").json()["data"]]
    assert versions == [alone[model].spans[0].version for model in models]
    assert (versions[0], versions[3]) == (0, 7)


def test_a_full_server_says_what_could_be_unloaded(tiny: Path):
    with running_server(tiny, max_adapters=2) as server:
        assert [load(server, name, 0).status_code for name in ("a", "b")] == [200, 200]
        full = load(server, "c", 0)
        assert full.status_code == 400
        assert "started for 2" in full.json()["error"]["message"]
        assert "a, b are loaded; unload one" in full.json()["error"]["message"]
        assert load(server, "a", 1, load_inplace=True).status_code == 200
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "a"}).status_code == 200
        assert load(server, "c", 0).status_code == 200


def test_whose_adapter_is_replaced_goes_on_with_the_new_one(server: Running):
    load(server, "live", 0, policy_version=4)
    choices = streamed(server, "live", lambda: load(server, "live", 1, load_inplace=True, policy_version=5))
    first, second = choices[-1]["policy_versions"]
    assert (first["start"], first["version"]) == (0, 4)
    assert (second["start"], second["end"], second["version"]) == (first["end"], LONG, 5)


def test_whose_adapter_is_unloaded_is_answered_to_the_end(server: Running):
    load(server, "live", 0, policy_version=4)
    whole = [token for choice in streamed(server, "live", lambda: None) for token in choice["token_ids"]]

    def another() -> None:  # of the same name even, which changes nothing for who has begun
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "live"}).status_code == 200
        gone = server.post("/v1/completions", {"model": "live", **ASK})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
        load(server, "live", 1, policy_version=5)

    choices = streamed(server, "live", another)
    assert [token for choice in choices for token in choice["token_ids"]] == whole
    assert choices[-1]["policy_versions"] == [{"start": 0, "end": LONG, "version": 4}]
    assert ask(server, "live")["policy_versions"][0]["version"] == 5
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "nobody"}).status_code == 404


def streamed(server: Running, model: str, meanwhile: Callable[[], object]) -> list[dict]:
    """The choices of a long stream, after whose first ``meanwhile`` is done."""
    body = {"model": model, "prompt": [5, 6], "max_tokens": LONG, "ignore_eos": True, "seed": 1}
    more = {"return_token_ids": True, "stream": True}
    choices = []
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**body, **more}, timeout=60) as stream:
        lines = stream.iter_lines()
        for line in lines:
            if line.startswith("data: {"):
                choices.append(json.loads(line.removeprefix("data: "))["choices"][0])
                if len(choices) == 1:
                    meanwhile()
    return choices


def test_what_does_not_fit_is_refused_and_changes_nothing(server: Running, tmp_path: Path):
    fits = server.adapter(seed=2)
    name = next(key for key in fits if key.endswith("lora_a"))
    peft = to_peft(fits)
    big = {key: np.repeat(value, 2, axis=0 if "lora_A" in key else 1) for key, value in peft.items()}
    config = {"lora_config": {"r": 4, "lora_alpha": 8}}
    broken = [
        (
            {"lora_weights": in_base64({**fits, "model.layers.9.nowhere.lora_a": fits[name]})},
            "no adapter weight",
        ),
        ({"lora_weights": in_base64({k: v for k, v in fits.items() if k != name})}, "lacks"),
        ({"lora_weights": in_base64({**fits, name: fits[name][:, :2].copy()})}, "shape"),
        ({"lora_weights": in_base64({**fits, name: np.full_like(fits[name], np.nan)})}, "not finite"),
        ({"lora_weights": in_base64(peft)}, "lora_config"),
        (
            {"lora_weights": in_base64({**peft, "x.lora_A.weight": peft[next(iter(peft))]}), **config},
            "no adapter",
        ),
        ({"lora_weights": in_base64(dict(list(peft.items())[1:])), **config}, "without"),
        ({"lora_weights": in_base64(peft), "lora_config": {"r": 2, "lora_alpha": 8}}, "shape"),
        ({"lora_weights": in_base64(big), "lora_config": {"r": 8, "lora_alpha": 8}}, "rank 8"),
        ({"lora_weights": in_base64({key: v.astype(np.int32) for key, v in fits.items()})}, "type I32"),
        ({"lora_weights": in_base64(fits, {"scale": "many"})}, "which is no number"),
        ({"lora_weights": in_base64({})}, "lacks"),
        ({"lora_weights": base64.b64encode(b"no safetensors").decode()}, "safetensors"),
        ({"lora_weights": "***"}, "base64"),
        ({"lora_path": str(tmp_path / "nowhere")}, "there is no adapter"),
        ({"lora_path": "/dev/zero"}, "there is no adapter"),
        ({"lora_path": "a\x00b"}, "there is no adapter"),
        ({"lora_path": str(tmp_path), "lora_weights": ""}, "either"),
        ({}, "either"),
    ]
    before = ask(server, "tiny")
    for body, sentence in broken:
        refused = server.post("/v1/load_lora_adapter", {"lora_name": "broken", **body})
        assert refused.status_code == 400, (sentence, refused.text)
        assert sentence in refused.json()["error"]["message"]
    assert len(server.get("/v1/models").json()["data"]) == 1
    assert ask(server, "tiny") == before
    the_base = {"lora_name": "tiny", "lora_weights": in_base64(fits)}
    assert server.post("/v1/load_lora_adapter", the_base).status_code == 400


def test_a_peft_configuration_of_something_else_is_refused_by_name(server: Running, tmp_path: Path):
    save_peft(tmp_path / "a", server.adapter(), LORA.scale, "tiny")
    file = tmp_path / "a" / "adapter_config.json"
    config = json.loads(file.read_text())
    for change in (
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"bias": "all"},
        {"r": 0},
        {"r": "x"},
    ):
        file.write_text(json.dumps({**config, **change}))
        refused = server.post("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": str(tmp_path / "a")})
        assert refused.status_code == 400
        assert next(iter(change)) in refused.json()["error"]["message"]
