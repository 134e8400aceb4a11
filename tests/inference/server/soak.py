"""Many clients at once, for minutes, a tenth of whom hang up midway, while adapters come and go.

    python tests/inference/server/soak.py --seconds 120 --clients 200

starts a server, prints its memory every ten seconds, and at the end whether every answer was right, all memory for
keys and values was given back, and the process stayed as large as it was after the first quarter.

With a real model (``--model smollm2-135m``) requests wait for two minutes, and each holds on to its adapter, unloaded
or not: the process grows until the first of them are answered. So give it ``--seconds 480``, or ``--publications 1``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import save

from selfplay_ray.inference.engine import Engine
from selfplay_ray.lora import LoRASettings
from selfplay_ray.models import resolve_model

WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "said",
    "that",
    "seven",
    "plus",
    "eight",
    "is",
    "fifteen",
)
HUNG_UP = "hung up"
RANK = 4
KEPT = ("--prefix-seconds", "1", "--prefix-cache-bytes")


@dataclass(slots=True)
class Soak:
    """Clients of the server at ``url``, whose base model is ``base`` and whose adapters have ``shapes``."""

    url: str
    base: str
    shapes: Mapping[str, tuple[int, ...]]
    seconds: float
    clients: int
    longest: int = 200
    """Most words of a prompt; replies are at most a third of that."""
    publications: int = 40
    """How often adapters are replaced meanwhile."""
    tally: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    _serving: list[str] = field(default_factory=list)
    _deadline: float = 0.0

    async def run(self) -> None:
        self._deadline = time.monotonic() + self.seconds
        self._serving = [self.base]
        limits = httpx.Limits(max_connections=self.clients + 8, max_keepalive_connections=self.clients)
        async with httpx.AsyncClient(base_url=self.url, timeout=900, limits=limits) as http:
            clients = [self._client(http, random.Random(seed)) for seed in range(self.clients)]
            await asyncio.gather(self._publish(http), *clients)

    async def _client(self, http: httpx.AsyncClient, dice: random.Random) -> None:
        await asyncio.sleep(dice.random())
        while time.monotonic() < self._deadline:
            model = dice.choice(self._serving)
            path, body = self._request(dice, model)
            leaves = dice.random() < 0.1
            try:
                async with asyncio.timeout(dice.uniform(0, 0.5) if leaves else None):
                    await self._ask(http, path, body, dice)
                self.tally[path + (" streamed" if body["stream"] else "")] += 1
            except TimeoutError:
                self.tally[HUNG_UP] += 1
            except (httpx.HTTPError, AssertionError, KeyError) as error:
                said = error.response.text if isinstance(error, httpx.HTTPStatusError) else repr(error)
                if "model_not_found" in said and model not in self._serving:
                    self.tally["unloaded meanwhile"] += 1  # between choosing it and being asked for
                else:
                    self.errors.append(f"{path} {error!r}: {said}")

    def _request(self, dice: random.Random, model: str) -> tuple[str, dict]:
        # Some prompts are those of others, or begin like them.
        words = dice.choices(WORDS, k=dice.randint(1, self.longest))
        if dice.random() < 0.5:
            words = list(WORDS) * (1 + len(words) // len(WORDS))
        tokens = dice.randint(1, self.longest // 3)
        common = {"model": model, "stream": dice.random() < 0.4}
        sampling = {
            "max_tokens": tokens,
            "n": dice.choice((1, 1, 1, 3)),
            "logprobs": dice.choice((0, 0, 0, 1)),
        }
        if dice.random() < 0.3:
            sampling["stop"] = ["zebra", " on"]
        text = " ".join(words)
        asked = {**common, "return_token_ids": True}
        match dice.randrange(3):
            case 0:
                messages = [{"role": "user", "content": text}]
                return "/v1/chat/completions", {**asked, **sampling, "logprobs": True, "messages": messages}
            case 1:
                return "/v1/completions", {**asked, **sampling, "prompt": text}
        ids = [dice.randrange(100, 40_000) for _ in words]
        return "/inference/v1/generate", {**common, "sampling_params": sampling, "token_ids": ids}

    async def _ask(self, http: httpx.AsyncClient, path: str, body: dict, dice: random.Random) -> None:
        if not body["stream"]:
            answer = await http.post(path, json=body)
            answer.raise_for_status()
            for choice in answer.json()["choices"]:
                _check(choice["token_ids"], choice["policy_versions"], choice["finish_reason"])
            return
        tokens: dict[int, list[int]] = {}
        async with contextlib.aclosing(_events(http, path, body)) as events:
            async for choice in events:
                so_far = tokens.setdefault(choice["index"], [])
                so_far += choice.get("token_ids", [])
                if choice.get("finish_reason"):
                    _check(so_far, choice["policy_versions"], choice["finish_reason"])
                    del tokens[choice["index"]]
                if dice.random() < 0.002:
                    self.tally[HUNG_UP + " in a stream"] += 1
                    return
        assert not tokens, "a stream ended before its choices"

    async def _publish(self, http: httpx.AsyncClient) -> None:
        """A policy that is replaced in place, and versions of another of which three are kept."""
        version = 0
        while time.monotonic() < self._deadline:
            version += 1
            await self._load(http, "live", version, load_inplace=True)
            await self._load(http, f"past@v{version}", version)
            oldest = f"past@v{version - 3}"
            if oldest in self._serving:
                self._serving.remove(oldest)
                await _post(http, "/v1/unload_lora_adapter", {"lora_name": oldest})
            self.tally["published"] += 1
            await asyncio.sleep(self.seconds / self.publications)
        for name in [name for name in self._serving if name != self.base]:
            self._serving.remove(name)
            await _post(http, "/v1/unload_lora_adapter", {"lora_name": name})

    async def _load(self, http: httpx.AsyncClient, name: str, version: int, **more: object) -> None:
        dice = np.random.default_rng(version)
        weights = {
            key: (0.1 * dice.standard_normal(shape)).astype(np.float32) for key, shape in self.shapes.items()
        }
        encoded = base64.b64encode(save(weights)).decode()
        body = {"lora_name": name, "lora_weights": encoded, "policy_version": version, **more}
        await _post(http, "/v1/load_lora_adapter", body)
        if name not in self._serving:
            self._serving.append(name)


async def _post(http: httpx.AsyncClient, path: str, body: dict) -> None:
    (await http.post(path, json=body)).raise_for_status()


async def _events(http: httpx.AsyncClient, path: str, body: dict) -> AsyncIterator[dict]:
    """The choices of a stream, which must end as one does."""
    async with http.stream("POST", path, json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
        answer.raise_for_status()
        done = False
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line:
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                for choice in event["choices"]:
                    yield choice
        assert done, "a stream was cut short"


def _check(tokens: list[int], spans: list[dict], reason: str) -> None:
    assert tokens, "no tokens"
    assert reason in ("stop", "length"), reason
    ends = [0, *(span["end"] for span in spans)]
    assert [span["start"] for span in spans] == ends[:-1], spans
    assert ends[-1] == len(tokens), (spans, len(tokens))


def metrics(url: str) -> dict[str, float]:
    """The server's gauges and counters that have no labels but the model's."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text)
    return {s.name: s.value for family in families for s in family.samples if len(s.labels) == 1}


@contextlib.contextmanager
def served(model: str, prefix_bytes: str) -> Iterator[tuple[str, int]]:
    """The command itself, in a process of its own, as "base": where it is, and its process id."""
    command = [sys.executable, "-m", "selfplay_ray.inference.server", "--port", "0", "--model", model]
    flags = ["--served-model-name", "base", "--lora-rank", str(RANK), *KEPT, prefix_bytes]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        yield line.split()[3].removesuffix("/v1;"), process.pid
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        process.kill()
        process.communicate()


def resident_megabytes(pid: int) -> float:
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(shown.stdout) / 1024


async def watch(url: str, pid: int, sizes: list[tuple[float, float]]) -> None:
    started = time.monotonic()
    while True:
        now = await asyncio.to_thread(metrics, url)
        sizes.append((time.monotonic() - started, resident_megabytes(pid)))
        print(
            f"{sizes[-1][0]:5.0f} s  {sizes[-1][1]:6.0f} MB resident, {now['selfplay:kv_bytes'] / 1e6:5.1f} MB keys "
            f"and values, {now['vllm:num_requests_running']:3.0f} running, {now['vllm:num_requests_waiting']:4.0f} "
            f"waiting, {now['vllm:generation_tokens_total']:8.0f} tokens",
            flush=True,
        )
        await asyncio.sleep(10)


async def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--longest", type=int, default=200, help="most words of a prompt")
    parser.add_argument("--publications", type=int, default=40, help="how often adapters are replaced")
    parser.add_argument("--model", help="instead of a made-up tiny one")
    parser.add_argument("--prefix-bytes", default="8MiB", help="kept of prompts: little, to be full soon")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(_tiny(Path(folder) / "tiny"))
        with served(model, options.prefix_bytes) as (url, pid):
            soak = Soak(
                url,
                "base",
                shapes(model),
                options.seconds,
                options.clients,
                options.longest,
                options.publications,
            )
            sizes: list[tuple[float, float]] = []
            watching = asyncio.create_task(watch(url, pid, sizes))
            await soak.run()
            watching.cancel()
            return await asyncio.to_thread(_report, soak, sizes)


def _report(soak: Soak, sizes: list[tuple[float, float]]) -> int:
    left = returned(soak.url)
    print(f"asked: {dict(soak.tally)}")
    quarter = soak.seconds / 4
    early = max(size for at, size in sizes if quarter <= at < 2 * quarter)
    late = max(size for at, size in sizes if at >= 2 * quarter)
    print(
        f"resident: {early:.0f} MB in the second quarter, {late:.0f} MB afterwards ({late / early - 1:+.1%})"
    )
    for text, count in Counter(soak.errors).most_common(10):
        print(f"{count} × {text[:500]}")
    print(f"{len(soak.errors)} errors; left of keys and values: {left:.0f} bytes")
    return int(bool(soak.errors) or left > 0 or late > 1.1 * early)


def returned(url: str, seconds: float = 30) -> float:
    """Wait until nothing runs and nothing is kept, or it is clear that it won't be; the bytes that are left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = metrics(url)
        idle = now["vllm:num_requests_running"] == now["vllm:num_requests_waiting"] == 0
        if idle and now["selfplay:kv_bytes"] == 0:
            break
        time.sleep(0.2)
    return now["selfplay:kv_bytes"]


def _tiny(folder: Path) -> Path:
    sys.path.append(str(Path(__file__).parents[2]))
    from tiny_model import write_tiny_model

    return write_tiny_model(folder)


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    with Engine(resolve_model(model), lora=LoRASettings(RANK)) as engine:
        return dict(engine.adapter_shapes)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
