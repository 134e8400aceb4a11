"""The batch under schedules made up by chance: requests, cancellations and changes of weights in any order.

Every reply is compared with the plain model, run for it alone, token by token, with the weights that its
policy versions name; in the end nothing is left of what was run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from selfplay_ray.errors import AdapterError, UnknownNameError
from selfplay_ray.inference import decoder
from selfplay_ray.inference.adapters import Adapter, Adapters
from selfplay_ray.inference.batch_settings import BatchSettings
from selfplay_ray.inference.decoder import Decoder
from selfplay_ray.inference.forward import MLXForward
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.inference.sampling import SamplingRow, sample
from selfplay_ray.lora import LoRASettings

VOCABULARY = 300  # so small that a step takes no time
EOS = 2
POLICIES = 5
Weights = Mapping[str, np.ndarray]


def small_model() -> nn.Module:
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    }
    model = Model(ModelArgs.from_dict(config))
    rng = np.random.default_rng(0)
    shapes = [
        (name, value.shape)
        for name, value in dict(tree_flatten(model.parameters())).items()
        if "norm" not in name
    ]
    drawn = [
        (name, mx.array(rng.standard_normal(shape, np.float32) / shape[-1] ** 0.5)) for name, shape in shapes
    ]
    model.update(tree_unflatten(drawn))
    return model


def weights(adapters: Adapters, seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: 0.3 * rng.standard_normal(shape, np.float32) for name, shape in adapters.shapes.items()}


class Reference:
    """The plain model, one sequence at a time."""

    def __init__(self) -> None:
        self._model = small_model()
        self._adapters = Adapters(self._model, LoRASettings(), max_adapters=POLICIES)
        self._policies = [self._adapters.base]
        for number in range(1, POLICIES):
            self._policies.append(self._adapters.load(str(number), weights(self._adapters, number), number))

    def replay(self, request: GenerationRequest, policies: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Token by token, the n-th drawn by ``policies[n]``; the first runs the prompt too."""
        *head, last = request.prompt_token_ids
        caches = make_prompt_cache(self._model)
        if head:
            self._run(head, self._policies[policies[0]], caches)
        for position, policy in enumerate(policies):
            logits = self._run([last], self._policies[policy], caches)
            row = SamplingRow(request.seed, request.temperature, position)
            token, logprob = sample(logits, [row])
            last = int(np.array(token)[0])
            yield last, float(np.array(logprob)[0])

    def _run(self, tokens: Sequence[int], policy: Adapter, caches: list[object]) -> mx.array:
        self._adapters.select([policy])
        logits: mx.array = self._model(mx.array([tokens]), cache=caches)
        return logits[:, -1]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@dataclass
class Schedule:
    """What happens to one decoder, by chance."""

    seed: int
    version: int = 0
    policy_of: dict[int, int] = field(default_factory=lambda: {0: 0})  # by version
    asked: list[tuple[GenerationRequest, Future[Generation]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = chance = random.Random(self.seed)
        self.decoder = self._decoder(None)
        if chance.random() < 0.5:  # so little that requests wait for it
            self.decoder = self._decoder(self.decoder.budget.per_token * 64 * chance.choice([4, 8]))
        self.text = [chance.randrange(3, VOCABULARY) for _ in range(120)]

    def _decoder(self, kv_bytes: int | None) -> Decoder:
        chance, model = self.chance, small_model()
        settings = BatchSettings(
            max_batch_size=chance.choice([2, 4, 16]),
            prefill_step_size=chance.choice([3, 8, 17, 512]),
            kv_cache_bytes=kv_bytes,
            prefix_cache_bytes=chance.choice([0, 20_000, 2**28]),
        )
        return Decoder(model, {EOS}, settings, Adapters(model, LoRASettings(), max_adapters=3))

    def run(self) -> None:
        acts = [self._ask, self._cancel, self._load, self._unload, self.decoder.step]
        for act in self.chance.choices(acts, weights=[7, 2, 1, 1, 9], k=40):
            act()
        for _ in range(2000):
            if not self.decoder.busy:
                return
            self.decoder.step()
        pytest.fail(f"it doesn't come to an end: {self.decoder.stats()}")

    def _ask(self) -> None:
        chance = self.chance
        prompt = (
            *self.text[: chance.choice([0, 1, 16, 40, 41, 65, 110])],
            *chance.choices(self.text[:3], k=chance.choice([1, 1, 9])),
        )
        adapter = chance.choice([None, *self.decoder.adapters.versions])
        for _ in range(chance.choice([1, 2, 5, 8])):
            request = GenerationRequest(
                f"r{len(self.asked)}",
                prompt if chance.random() < 0.8 else (*prompt[:-1], chance.choice(self.text)),
                max_tokens=chance.choice([1, 2, 3, 9, 33]),
                temperature=chance.choice([1.0, 0.7, 0.0]),
                seed=chance.getrandbits(64),
                priority=chance.choice([0, 0, 1]),
                top_logprobs=chance.choice([0, 0, 2]),
                adapter=adapter,
            )
            self.asked.append((request, Future()))
            self.decoder.submit(*self.asked[-1])

    def _cancel(self) -> None:
        if self.asked:
            _, future = self.chance.choice(self.asked)
            future.cancel()
            self.decoder.cancel(future)

    def _load(self) -> None:
        self.version += 1
        policy = self.policy_of[self.version] = 1 + self.version % (POLICIES - 1)
        with suppress(AdapterError):  # no room for one more
            name = self.chance.choice(["live", "live", "one", "two", "three"])
            self.decoder.load_adapter(name, weights(self.decoder.adapters, policy), self.version)

    def _unload(self) -> None:
        with suppress(UnknownNameError):
            self.decoder.unload_adapter(self.chance.choice(["live", "one", "two"]))


@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("by_mlx", [False, True])
def test_whatever_happens_every_reply_is_as_alone(
    reference: Reference, seed: int, by_mlx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_mlx:
        monkeypatch.setattr(decoder, "forward_of", MLXForward)
    schedule = Schedule(seed)
    schedule.run()
    finished = [(request, future.result(0)) for request, future in schedule.asked if not future.cancelled()]
    assert finished
    for request, generation in finished:
        versions = [span.version for span in generation.spans for _ in range(span.start, span.end)]
        policies = [schedule.policy_of[version] if request.adapter else 0 for version in versions]
        tokens, logprobs = zip(*reference.replay(request, policies), strict=True)
        assert generation.token_ids == tokens, request
        assert np.allclose(generation.logprobs, logprobs, atol=1e-3)
        assert [len(top) for top in generation.top_logprobs] == [request.top_logprobs] * len(tokens)
        assert tokens[-1] == EOS or len(tokens) == request.max_tokens
    stats = schedule.decoder.stats()
    assert stats.kv_bytes == stats.prefix_bytes


def ask(prompt: Sequence[int], seed: int = 1, max_tokens: int = 6) -> GenerationRequest:
    return GenerationRequest(f"r{seed}", tuple(prompt), max_tokens, 1.0, seed, ignore_eos=True)


def run(decoder: Decoder, *requests: GenerationRequest) -> list[tuple[int, ...]]:
    futures: list[Future[Generation]] = [Future() for _ in requests]
    for request, future in zip(requests, futures, strict=True):
        decoder.submit(request, future)
    while decoder.busy:
        decoder.step()
    return [future.result(0).token_ids for future in futures]


def alone(reference: Reference, request: GenerationRequest, policy: int = 0) -> tuple[int, ...]:
    return tuple(token for token, _ in reference.replay(request, [policy] * request.max_tokens))


@pytest.mark.parametrize("lengths", [(40, 60), (60, 40), (60, 80)])
def test_prompts_that_go_on_from_different_places_of_a_kept_one(
    reference: Reference, lengths: tuple[int, int]
) -> None:
    decoder, text = Decoder(small_model(), {EOS}), range(100, 181)
    run(decoder, ask(text))
    both = [ask([*text[:length], 7, 8], seed) for seed, length in enumerate(lengths)]
    assert run(decoder, *both) == [alone(reference, request) for request in both]


@pytest.mark.parametrize("short", [1, 2])
def test_short_replies_end_while_prompts_are_being_run(reference: Reference, short: int) -> None:
    decoder = Decoder(small_model(), {EOS}, BatchSettings(prefill_step_size=9))
    requests = [ask([5 + n], n, max_tokens=3) for n in range(short)]
    requests += [ask([40 + n] * 30, 10 + n, max_tokens=4) for n in range(3)]
    assert run(decoder, *requests) == [alone(reference, request) for request in requests]


@pytest.mark.parametrize("length", [31, 40, 63, 80])
def test_samples_of_a_prompt_beside_who_is_alone(reference: Reference, length: int) -> None:
    decoder = Decoder(small_model(), {EOS})
    requests = [ask([5], 10, max_tokens=20)]
    requests += [ask([*range(100, 100 + length), 7], seed, max_tokens=20) for seed in range(9)]
    futures: list[Future[Generation]] = [Future() for _ in requests]
    for request, future in zip(requests, futures, strict=True):
        decoder.submit(request, future)
    for _ in range(6):
        decoder.step()
    last = ask([6], 11)
    assert run(decoder, last) == [alone(reference, last)]
    assert [future.result(0).token_ids for future in futures] == [
        alone(reference, request) for request in requests
    ]


def test_other_weights_of_the_same_version_begin_with_keys_of_their_own(reference: Reference) -> None:
    model = small_model()
    decoder = Decoder(model, {EOS}, adapters=Adapters(model, LoRASettings(), max_adapters=1))
    decoder.load_adapter("live", weights(decoder.adapters, 1), version=7)
    future: Future[Generation] = Future()
    decoder.submit(ask(range(100, 130), max_tokens=40), future)
    for _ in range(5):
        decoder.step()
    decoder.load_adapter("live", weights(decoder.adapters, 2), version=7)
    run(decoder)
    later = ask([*range(100, 130), *future.result(0).token_ids, 7])
    assert run(decoder, later) == [alone(reference, later, policy=2)]
