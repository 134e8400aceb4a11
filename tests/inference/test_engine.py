"""The engine: real answers, true logprobs, honest versions, and nobody left waiting."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from selfplay_ray.errors import AdapterError, EngineStoppedError, InferenceError, ModelError
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.decoder import Decoder
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.lora import LoRASettings, attach_lora, read_adapter, write_adapter
from selfplay_ray.models import load_model
from selfplay_ray.types import Message

PROMPT = tuple(range(100, 120))


def request(
    name: str = "r",
    prompt: tuple[int, ...] = PROMPT,
    max_tokens: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
) -> GenerationRequest:
    return GenerationRequest(name, prompt, max_tokens, temperature, seed)


def user(chat: ChatTokenizer, text: str) -> tuple[int, ...]:
    return chat.encode([Message(role="user", content=text)])[0]


def logprobs_of(logits: mx.array, tokens: Sequence[int], temperature: float) -> list[float]:
    """log-softmax at ``temperature`` of logits [T, V] at tokens [T], in float64."""
    scaled = np.array(logits.astype(mx.float32)).astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    normalised = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return [float(row[token]) for row, token in zip(normalised, tokens, strict=True)]


def perturbed(model: nn.Module, seed: int = 0) -> dict[str, np.ndarray]:
    """Adapter weights that change what the model says."""
    rng = np.random.default_rng(seed)
    adapter = read_adapter(model)
    return {n: (w + 0.03 * rng.standard_normal(w.shape)).astype(np.float32) for n, w in adapter.items()}


def zero_like(model_path: Path) -> dict[str, np.ndarray]:
    model = load_model(model_path)[0]
    attach_lora(model, LoRASettings(), seed=0)
    return read_adapter(model)


async def until_generated(engine: Engine, tokens: int) -> None:
    while engine.stats().generated_tokens < tokens:
        await asyncio.sleep(0.001)


async def test_the_real_model_answers(engine: Engine, chat: ChatTokenizer) -> None:
    prompt = user(chat, "What is the capital of France?")
    answer = await engine.generate(request(prompt=prompt, max_tokens=20, temperature=0.0))
    assert chat.decode(answer.token_ids) == "The capital of France is Paris."
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] in chat.eos_token_ids


async def test_logprobs_are_those_of_one_full_forward_pass(
    engine: Engine, real_model: nn.Module, chat: ChatTokenizer
) -> None:
    questions = ["Tell me a joke.", "What is 7 + 8?", "Write about the sea, the wind and a small boat."]
    asked = [
        request(f"r{i}", user(chat, questions[i % 3]), max_tokens=12, temperature=[1.0, 0.7][i % 2], seed=i)
        for i in range(6)
    ]
    answers = await asyncio.gather(*[engine.generate(one) for one in asked])
    for one, answer in zip(asked, answers, strict=True):
        whole = mx.array([*one.prompt_token_ids, *answer.token_ids])[None]
        logits = real_model(whole)[0, len(one.prompt_token_ids) - 1 : -1]
        expected = logprobs_of(logits, answer.token_ids, one.temperature)
        assert answer.logprobs == pytest.approx(expected, abs=1e-4)


async def test_a_seeded_request_alone_is_the_same_in_a_crowd(engine: Engine, chat: ChatTokenizer) -> None:
    mine = request("mine", user(chat, "Tell me a story."), max_tokens=12, seed=2**63 + 5)
    crowd = [
        request(f"r{i}", user(chat, "Count. " * (3 * i + 1)), 4 + 3 * i, [0.0, 1.0, 0.6][i % 3], seed=i)
        for i in range(6)
    ]
    alone = await engine.generate(mine)
    crowded, *_ = await asyncio.gather(*[engine.generate(one) for one in [mine, *crowd]])
    assert crowded.token_ids == alone.token_ids
    assert crowded.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


async def test_tokens_carry_the_version_that_drew_them(smollm2: Path, chat: ChatTokenizer) -> None:
    """Against the same walk by hand: old weights up to the swap, then new ones on the old keys and values."""
    model = load_model(smollm2)[0]
    attach_lora(model, LoRASettings(), seed=0)
    old, new = read_adapter(model), perturbed(model)
    prompt = user(chat, "Tell me a story about a dog.")
    with Engine(smollm2, lora=LoRASettings()) as engine:
        task = asyncio.create_task(engine.generate(request(prompt=prompt, max_tokens=24)))
        await until_generated(engine, 5)
        await engine.load_adapter(new, version=7)
        assert engine.policy_version == 7
        answer = await task
        assert engine.stats().swap_seconds > 0
    before, after = answer.spans
    assert (before.version, after.version) == (0, 7)
    assert before.end >= 5
    cache = make_prompt_cache(model)
    # The last token drawn by the old weights was the first to be fed to the new.
    fed_old, fed_new = [*prompt, *answer.token_ids[: before.end - 1]], answer.token_ids[before.end - 1 : -1]
    write_adapter(model, old)
    logits = [model(mx.array(fed_old)[None], cache=cache)[0, len(prompt) - 1 :]]
    mx.eval(logits, [c.state for c in cache])
    write_adapter(model, new)
    logits.append(model(mx.array(fed_new)[None], cache=cache)[0])
    expected = logprobs_of(mx.concatenate(logits), answer.token_ids, 1.0)
    assert answer.logprobs == pytest.approx(expected, abs=1e-4)
    # A version off by one token would be seen: the two policies differ by far more than that.
    straight = model(mx.array([*prompt, *answer.token_ids])[None])[0, len(prompt) - 1 : -1]
    assert max(np.abs(np.subtract(logprobs_of(straight, answer.token_ids, 1.0), expected))) > 0.1


async def test_an_adapter_that_does_not_fit_changes_nothing(tiny: Path, tiny_engine: Engine) -> None:
    fits = zero_like(tiny)
    name = next(iter(fits))
    for broken in (
        {**fits, "model.layers.9.nowhere.lora_a": fits[name]},
        {key: value for key, value in fits.items() if key != name},
        {**fits, name: fits[name][:, :2]},
        {**fits, name: np.full_like(fits[name], np.nan)},
    ):
        with pytest.raises(AdapterError):
            await tiny_engine.load_adapter(broken, version=1)
    assert tiny_engine.policy_version == 0
    assert (await tiny_engine.generate(request())).spans[0].version == 0
    await tiny_engine.load_adapter(fits, version=1)
    assert (await tiny_engine.generate(request())).spans[0].version == 1


async def test_an_engine_without_an_adapter_takes_none(tiny: Path) -> None:
    with Engine(tiny) as engine, pytest.raises(AdapterError, match="carries no adapter"):
        await engine.load_adapter(zero_like(tiny), version=1)


async def test_cancelling_frees_the_place(tiny_engine: Engine) -> None:
    long = [request(f"long{i}", max_tokens=900, seed=i) for i in range(4)]  # all four places
    tasks = [asyncio.create_task(tiny_engine.generate(one)) for one in long]
    await until_generated(tiny_engine, 4)
    waiting = asyncio.create_task(tiny_engine.generate(request("next", max_tokens=2)))
    given_up = asyncio.create_task(tiny_engine.generate(request("given up")))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    assert tiny_engine.stats().waiting == 2
    for task in (tasks[0], given_up):
        task.cancel()
    assert len((await waiting).token_ids) == 2
    assert not any(task.done() for task in tasks[1:])
    assert tiny_engine.stats().running == 3
    assert tiny_engine.stats().waiting == 0
    for task in tasks:
        task.cancel()
    assert all(
        isinstance(result, asyncio.CancelledError)
        for result in await asyncio.gather(*tasks, given_up, return_exceptions=True)
    )


async def test_two_event_loops_share_an_engine(tiny_engine: Engine) -> None:
    asked = [request(f"r{seed}", seed=seed) for seed in range(6)]
    alone = [await tiny_engine.generate(one) for one in asked]
    answers: dict[int, list[Generation]] = {}

    def loop(number: int) -> None:
        async def ask() -> list[Generation]:
            return await asyncio.gather(*[tiny_engine.generate(one) for one in asked])

        answers[number] = asyncio.run(ask())

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    tokens = [answer.token_ids for answer in alone]
    assert [answer.token_ids for answer in answers[0]] == tokens
    assert [answer.token_ids for answer in answers[1]] == tokens


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "temperature", "sentence"),
    [
        ((), 4, 1.0, "request r has an empty prompt"),
        ("Hello", 4, 1.0, "prompt_token_ids of request r are token ids, not 'Hello'"),
        (PROMPT, 0, 1.0, "request r asks for 0 tokens"),
        (PROMPT, 4, -1.0, "request r has temperature -1.0"),
        (PROMPT, 4, float("nan"), "request r has temperature nan"),
        (PROMPT, 4, 1e-39, "request r has temperature 1e-39; it needs 0, which is greedy, or 0.01 or more"),
        (PROMPT, 1005, 1.0, r"request r needs 20 prompt \+ 1005 new tokens; the model's context holds 1024"),
        ((49152,), 4, 1.0, "request r has token ids beyond the vocabulary of 49152"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_name(
    tiny_engine: Engine, prompt: tuple[int, ...], max_tokens: int, temperature: float, sentence: str
) -> None:
    with pytest.raises(InferenceError, match=sentence):
        await tiny_engine.generate(request("r", prompt, max_tokens, temperature))


async def test_a_prompt_may_be_any_sequence_of_token_ids(tiny_engine: Engine) -> None:
    """A list that went as far as the decoder would end the engine of everybody."""
    answers = [
        await tiny_engine.generate(GenerationRequest("r", prompt, 4, 1.0, seed=7))  # type: ignore[arg-type]
        for prompt in (PROMPT, list(PROMPT), np.array(PROMPT))
    ]
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids


async def test_closing_fails_what_is_unfinished_and_what_comes_later(tiny: Path) -> None:
    engine = Engine(tiny)
    pending = asyncio.create_task(engine.generate(request(max_tokens=900)))
    await until_generated(engine, 1)
    await asyncio.to_thread(engine.close)
    with pytest.raises(InferenceError, match="was closed"):
        await pending
    with pytest.raises(InferenceError, match="was closed"):
        await engine.generate(request())
    with pytest.raises(InferenceError, match="was closed"):
        await engine.load_adapter({}, version=1)
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_nobody_waits_for_a_thread_that_died(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = RuntimeError("out of memory")

    def die(_: Decoder) -> None:
        raise cause

    engine = Engine(tiny)
    monkeypatch.setattr(Decoder, "step", die)
    results = await asyncio.gather(*[engine.generate(request()) for _ in range(3)], return_exceptions=True)
    for error in results:
        assert isinstance(error, InferenceError)
        assert error.__cause__ is cause
        assert "out of memory" in str(error)
    with pytest.raises(InferenceError, match="out of memory") as later:
        await engine.generate(request())
    assert later.value.__cause__ is cause
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_nobody_waits_for_a_command_that_cannot_be_obeyed(tiny: Path) -> None:
    engine = Engine(tiny, lora=LoRASettings())
    weights = {name: [0.0] for name in engine.adapter_shapes}  # no arrays
    with pytest.raises(AttributeError):
        await engine.load_adapter(weights, version=1)  # type: ignore[arg-type]
    with pytest.raises(EngineStoppedError, match="AttributeError"):
        await engine.generate(request())
    engine.close()


def test_a_model_that_is_none_is_told_to_whoever_starts_the_engine(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model folder: .* lacks config\.json"):
        Engine(tmp_path)


def test_an_engine_nobody_closed_does_not_keep_the_process(tiny: Path) -> None:
    code = (
        "import asyncio\n"
        "from selfplay_ray.inference.engine import Engine\n"
        "from selfplay_ray.inference.requests import GenerationRequest\n"
        f"engine = Engine({str(tiny)!r})\n"
        "print(len(asyncio.run(engine.generate(GenerationRequest('r', (5, 6), 3, 1.0, 0))).token_ids))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
