"""Adapters over HTTP: from disk and in the request, checked before anything changes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from server_running import LORA, Running

from selfplay_ray.inference.peft import save_peft, to_peft
from selfplay_ray.lora import save_adapter

ASK = {"prompt": [5, 6, 7], "max_tokens": 6, "seed": 1, "return_token_ids": True, "logprobs": 0}


def in_base64(weights: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> str:
    return base64.b64encode(save(weights, metadata=metadata)).decode()


def ask(server: Running, model: str) -> dict:
    answer = server.post("/v1/completions", {"model": model, **ASK})
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
    def load(seed: int, **more: object) -> int:
        body = {"lora_name": "live", "lora_weights": in_base64(server.adapter(seed)), **more}
        return server.post("/v1/load_lora_adapter", body).status_code

    assert load(0) == 200
    first = ask(server, "live")
    assert load(1) == 400
    assert ask(server, "live")["policy_versions"] == first["policy_versions"]
    assert load(1, load_inplace=True) == 200
    second = ask(server, "live")
    assert second["policy_versions"][0]["version"] == first["policy_versions"][0]["version"] + 1
    assert second["logprobs"] != first["logprobs"]


def test_while_an_adapter_is_loaded_the_base_and_a_second_one_are_refused(server: Running):
    weights = in_base64(server.adapter())
    server.post("/v1/load_lora_adapter", {"lora_name": "a-1", "lora_weights": weights})
    base = server.post("/v1/completions", {"model": "tiny", **ASK})
    assert (base.status_code, base.json()["error"]["code"]) == (409, "model_not_available")
    assert server.post("/v1/completions", ASK).status_code == 409
    second = server.post("/v1/load_lora_adapter", {"lora_name": "a-2", "lora_weights": weights})
    assert second.status_code == 409
    assert "unload it first" in second.json()["error"]["message"]
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "a-2"}).status_code == 404


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
