"""Training without an adapter: all weights of the model move, are sampled with, kept and exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx import nn
from tiny_model import write_tiny_model

from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.episode import EpisodeState, SingleTurnEpisode
from selfplay_ray.errors import AdapterError, ConfigError, InferenceError
from selfplay_ray.export import export_fused, export_peft
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.requests import LIVE, GenerationRequest
from selfplay_ray.lora import (
    LoRASettings,
    SavedAdapter,
    arrays_by_path,
    attach_lora,
    load_adapter,
    save_adapter,
)
from selfplay_ray.loss_settings import LossSettings
from selfplay_ray.models import load_model
from selfplay_ray.rubric import Rubric
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.forward import PlainForward
from selfplay_ray.training.gradient import StepLoss, step_gradient
from selfplay_ray.training.loop import simple_training_loop
from selfplay_ray.training.trainer import Trainer, TrainerSettings
from selfplay_ray.types import EpisodeRequest, Role

ALL = LoRASettings(rank=0)
SETTINGS = TrainerSettings(lr=1e-3, lora=ALL)
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a real tokenizer, whose embedding is its head too."""
    return write_tiny_model(tmp_path_factory.mktemp("whole") / "tiny")


def batch(record):
    return [
        record("a", PROMPT, [9, 2, 6]),
        record("b", PROMPT, [5, 3, 5, 8, 9], advantage=0.5),
        record("c", [2, 7, 1], [2, 8], temperature=0.5),
    ]


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in arrays_by_path(model.parameters()).items()}


def test_every_weight_moves_that_was_of_use(tiny, record):
    trainer = Trainer(tiny, SETTINGS)
    before = trainer.adapter()
    assert before.keys() == weights_of(load_model(tiny)[0]).keys()
    for _ in range(2):
        trainer.train_step(batch(record))
    for name, value in trainer.adapter().items():
        moved = value != before[name]
        if name == "model.embed_tokens.weight":  # of tokens that were read; the last of a completion isn't
            assert set(np.flatnonzero(moved.any(axis=1))) == {1, 2, 3, 4, 5, 7, 8, 9}
        else:
            assert moved.mean() > 0.99, name


@pytest.mark.parametrize("grad_checkpoint", [False, True])
@pytest.mark.parametrize("folder", ["tiny", "chatty"])
def test_its_gradient_is_that_of_whole_sequences(folder, grad_checkpoint, record, request):
    trainer = Trainer(request.getfixturevalue(folder), replace(SETTINGS, grad_checkpoint=grad_checkpoint))
    plain = Trainer(request.getfixturevalue(folder), SETTINGS)
    assert trainer.forward.shared
    loss = StepLoss(trainer.objective)
    shared = plan_step(batch(record), 1000, 50, shared=True)
    whole = plan_step(batch(record), 1000, 50, shared=False)
    got = step_gradient(trainer.model, shared.batches, loss, trainer.forward).gradients
    expected = step_gradient(plain.model, whole.batches, loss, PlainForward()).gradients
    assert got.keys() == expected.keys() == trainer.adapter().keys()
    for name, value in expected.items():
        error = mx.linalg.norm(got[name] - value) / mx.linalg.norm(value)
        assert error.item() < 1e-4, name


class Speak(SingleTurnEpisode):
    """Earns what its token ids happen to come to."""

    rubric = Rubric(
        [lambda rollout, arena: {s.role_id: sum(s.completion_token_ids) % 11 / 10 for s in rollout.steps}]
    )

    def get_initial_role(self, artifact: object, state: EpisodeState) -> str:
        return "Speaker"

    def get_initial_prompt(self, arena: Arena, artifact: object, state: EpisodeState) -> str:
        return "Say something."


class SpeakArena(Arena):
    def get_batch(self) -> list[EpisodeRequest]:
        return [EpisodeRequest("speak")] * 8


def logprobs_of(model: nn.Module, tokens: tuple[int, ...]) -> np.ndarray:
    """Of ``tokens`` after the prompt."""
    logits = model(mx.array([[*PROMPT, *tokens]]))[0, len(PROMPT) - 1 : -1]
    return np.array(nn.log_softmax(logits))[np.arange(len(tokens)), list(tokens)]


async def test_the_engine_samples_with_what_was_trained(chatty: Path):
    with Engine(chatty, lora=ALL) as engine:
        arena = SpeakArena(EngineClient.for_engine(engine))
        arena.add_role(Role("Speaker", max_tokens=4))
        arena.add_episode("speak", Speak())
        trainer = Trainer(chatty, SETTINGS)
        history = await simple_training_loop(arena, trainer, num_steps=3)
        assert engine.policy_version == trainer.version == 3
        assert max(step.flat()["train/ratio_lag0"] for step in history) < 1e-4
        sampled = await engine.generate(GenerationRequest("a", tuple(PROMPT), 4, 1.0, seed=1))
    assert {span.version for span in sampled.spans} == {3}
    trained, before = (
        logprobs_of(model, sampled.token_ids) for model in (trainer.model, load_model(chatty)[0])
    )
    np.testing.assert_allclose(sampled.logprobs, trained, atol=1e-4)
    assert np.abs(trained - before).max() > 1e-2


async def test_an_engine_of_it_has_no_base_model_and_no_room_for_adapters(chatty: Path):
    with Engine(chatty, lora=ALL) as engine:
        with pytest.raises(InferenceError, match="can't answer as the base model; let judges do that"):
            await engine.generate(GenerationRequest("a", tuple(PROMPT), 4, 1.0, seed=1, adapter=None))
        weights = Trainer(chatty, SETTINGS).adapter()
        with pytest.raises(AdapterError, match="no room for adapter 'other'"):
            await engine.load_adapter(weights, 1, "other")
        with pytest.raises(AdapterError, match="nothing is left without them"):
            await engine.unload_adapter(LIVE)
        with pytest.raises(AdapterError, match="lacks 'model"):
            await engine.load_adapter({k: v for k, v in weights.items() if k != "model.norm.weight"}, 1)
        assert engine.policy_version == 0


def test_a_checkpoint_holds_it(tiny, record, tmp_path: Path):
    first, second = Trainer(tiny, SETTINGS), Trainer(tiny, SETTINGS)
    first.train_step(batch(record))
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    for trainer in (first, second):
        trainer.train_step(batch(record))
    for name, value in first.adapter().items():
        np.testing.assert_array_equal(second.adapter()[name], value)


def test_it_is_exported_as_a_model(chatty: Path, record, tmp_path: Path):
    trainer = Trainer(chatty, SETTINGS)
    trainer.train_step(batch(record))
    save_adapter(tmp_path / "v000001.safetensors", trainer.adapter(), ALL, trainer.version)
    saved = load_adapter(tmp_path / "v000001.safetensors")
    export_fused(saved, tmp_path / "out", str(chatty))
    exported = weights_of(mlx_lm.load(str(tmp_path / "out"))[0])
    assert exported.keys() == saved.weights.keys()
    assert all(np.array_equal(exported[name], value) for name, value in trainer.adapter().items())
    with pytest.raises(AdapterError, match="no adapter holds; export the whole model"):
        export_peft(saved, tmp_path / "peft")


def test_another_runs_weights_to_begin_with(tiny, record, tmp_path: Path):
    first = Trainer(tiny, SETTINGS)
    first.train_step(batch(record))
    path = tmp_path / "v000001.safetensors"
    save_adapter(path, first.adapter(), ALL, 1)
    second = Trainer(tiny, replace(SETTINGS, adapter=path))
    assert all(np.array_equal(second.adapter()[name], value) for name, value in first.adapter().items())
    save_adapter(path, Trainer(tiny, TrainerSettings()).adapter(), LoRASettings(), 1)
    with pytest.raises(AdapterError, match="rank 8, and there is only room for 0"):
        Trainer(tiny, replace(SETTINGS, adapter=path))


def test_where_there_is_no_base_model_nothing_stays_close_to_it(tiny):
    with pytest.raises(ConfigError, match="there is no base model to stay close to"):
        Trainer(tiny, replace(SETTINGS, loss=LossSettings(kl_coefficient=0.1)))


def test_quantized_weights_are_not_trained(tiny):
    model, _ = load_model(tiny)
    nn.quantize(model, group_size=32, bits=4)
    with pytest.raises(AdapterError, match="is quantized, and such weights can't be trained"):
        attach_lora(model, ALL, seed=0)


def test_endpoints_take_no_whole_models():
    with pytest.raises(ValueError, match="endpoints take adapters"):
        RunConfig(lora_rank=0, endpoints=("http://127.0.0.1:1/v1",))


def test_a_type_of_less_precision_is_left(tiny):
    model, _ = load_model(tiny)
    model.set_dtype(mx.bfloat16)
    attach_lora(model, ALL, seed=0)
    assert {value.dtype for value in arrays_by_path(model.parameters()).values()} == {mx.float32}


def test_the_saved_settings_say_so(tmp_path: Path):
    save_adapter(tmp_path / "a.safetensors", {"x": np.ones(2, np.float32)}, ALL, 4)
    assert load_adapter(tmp_path / "a.safetensors").settings == ALL
    assert isinstance(load_adapter(tmp_path / "a.safetensors"), SavedAdapter)
