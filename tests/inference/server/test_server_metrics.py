"""What Prometheus is told."""

from __future__ import annotations

import base64

import httpx
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import save
from server_running import Running

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "ignore_eos": True}


def test_tokens_and_times_are_counted_however_they_were_asked_for(server: Running):
    before = samples(server)
    answer = server.post("/v1/chat/completions", CHAT).json()
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={**CHAT, "stream": True}) as stream:
        stream.read()
    after = samples(server)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("vllm:generation_tokens_total") == 12
    assert grown("vllm:prompt_tokens_total") == 2 * answer["usage"]["prompt_tokens"]
    assert grown("vllm:request_success_total length") == 2
    for histogram in ("time_to_first_token", "request_time_per_output_token", "e2e_request_latency"):
        assert grown(f"vllm:{histogram}_seconds_count") == 2
    first, rest = (
        f"vllm:{name}_seconds_sum" for name in ("time_to_first_token", "request_time_per_output_token")
    )
    # Five more tokens came after the first, in either.
    whole = grown("vllm:e2e_request_latency_seconds_sum")
    assert abs(grown(first) + 5 * grown(rest) - whole) < 1e-6
    assert 0 < grown(first) < whole
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0


def test_what_is_kept_of_prompts_is_counted_in_tokens_and_is_no_use_of_memory(server: Running):
    prompt = list(range(100, 150))
    before = samples(server)
    for _ in range(2):
        server.post("/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 1})
    after = samples(server)
    queries, hits = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
    assert after[queries] - before[queries] == 100
    assert after[hits] - before[hits] == 49  # all but the last token, with which decoding begins
    assert after["vllm:kv_cache_usage_perc"] == 0
    assert (
        0 < after["selfplay:prefix_bytes"] <= after["selfplay:kv_bytes"] < after["selfplay:kv_capacity_bytes"]
    )


def test_each_model_has_its_version(server: Running):
    before = samples(server)
    weights = base64.b64encode(save(server.adapter())).decode()
    server.post("/v1/load_lora_adapter", {"lora_name": "mine@v7", "lora_weights": weights})
    after = samples(server)
    server.post("/v1/unload_lora_adapter", {"lora_name": "mine@v7"})
    assert (after["selfplay:policy_version tiny"], after["selfplay:policy_version mine@v7"]) == (0, 7)
    assert after["selfplay:adapters"] - before["selfplay:adapters"] == 1
    assert after["selfplay:swaps_total"] - before["selfplay:swaps_total"] == 1
    assert "selfplay:policy_version mine@v7" not in samples(server)


def samples(server: Running) -> dict[str, float]:
    """By name and, where there are further labels, their values. All are of the model that is served."""
    answer = server.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "tiny"
            found[" ".join((sample.name, *sample.labels.values()))] = sample.value
    return found
