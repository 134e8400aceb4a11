"""The adapter: what is trainable, what is refused, what comes back from disk."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models.llama import Model, ModelArgs

from selfplay_ray.errors import AdapterError, ConfigError
from selfplay_ray.lora import (
    LoRASettings,
    arrays_by_path,
    attach_lora,
    check_adapter,
    load_adapter,
    read_adapter,
    save_adapter,
    write_adapter,
)
from selfplay_ray.models import load_model

SETTINGS = LoRASettings(rank=2)
WIDTH, KEY_WIDTH, INNER, LAYERS = 32, 16, 64, 3


def llama() -> Model:
    """A llama of three layers: 32 wide, 4 query heads and 2 key heads of 8, 64 inside, 50 tokens."""
    mx.random.seed(1)
    return Model(
        ModelArgs(
            model_type="llama",
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            intermediate_size=INNER,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=50,
        )
    )


@pytest.fixture
def model() -> Model:
    adapted = llama()
    attach_lora(adapted, SETTINGS, seed=3)
    return adapted


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(mx.array([[1, 2, 3, 4]])))


def test_only_the_adapter_is_trainable(model):
    trainable = arrays_by_path(model.trainable_parameters())
    assert trainable.keys() == read_adapter(model).keys()
    assert {name.rpartition(".")[2] for name in trainable} == {"lora_a", "lora_b"}
    # rank × (inputs + outputs): q and o 32+32, k and v 32+16, gate and up 32+64, down 64+32
    per_layer = 2 * (2 * (32 + 32) + 2 * (32 + 16) + 2 * (32 + 64) + (64 + 32))
    assert sum(value.size for value in trainable.values()) == LAYERS * per_layer


def test_the_real_models_base_is_frozen(smollm2):
    model, _ = load_model(smollm2)
    attach_lora(model, LoRASettings(), seed=0)
    trainable = sum(value.size for value in arrays_by_path(model.trainable_parameters()).values())
    everything = sum(value.size for value in arrays_by_path(model.parameters()).values())
    # 576 wide, 192 for keys and values, 1536 inside: 8 × (2×1152 + 2×768 + 3×2112) × 30 layers
    assert trainable == 2_442_240
    assert everything - trainable == 134_515_008


def test_a_fresh_adapter_changes_nothing():
    model = llama()
    before = logits(model)
    attach_lora(model, SETTINGS, seed=3)
    np.testing.assert_array_equal(logits(model), before)


def test_the_seed_alone_decides_the_weights(model):
    mx.random.seed(99)
    again, other = llama(), llama()
    attach_lora(again, SETTINGS, seed=3)
    attach_lora(other, SETTINGS, seed=4)
    name = "model.layers.2.mlp.up_proj.lora_a"
    np.testing.assert_array_equal(read_adapter(again)[name], read_adapter(model)[name])
    assert not np.array_equal(read_adapter(other)[name], read_adapter(model)[name])
    assert np.abs(read_adapter(model)[name]).max() <= 1 / np.sqrt(WIDTH)


def test_attaching_leaves_the_random_state_as_it_was():
    model = llama()
    mx.random.seed(2**40 + 7)
    expected = np.array(mx.random.uniform(shape=(4,)))
    mx.random.seed(2**40 + 7)
    attach_lora(model, SETTINGS, seed=3)
    np.testing.assert_array_equal(np.array(mx.random.uniform(shape=(4,))), expected)


def test_layers_count_from_the_last():
    model = llama()
    attach_lora(model, LoRASettings(rank=2, layers=1), seed=0)
    assert {name.split(".")[2] for name in read_adapter(model)} == {"2"}
    write_adapter(model, read_adapter(model))


def test_a_quantized_base_carries_an_adapter():
    model = llama()
    nn.quantize(model, group_size=32, bits=4)
    attach_lora(model, SETTINGS, seed=0)
    shapes = {name: value.shape for name, value in read_adapter(model).items()}
    assert shapes["model.layers.0.mlp.down_proj.lora_a"] == (INNER, 2)
    assert shapes["model.layers.0.self_attn.k_proj.lora_b"] == (2, KEY_WIDTH)
    assert arrays_by_path(model.trainable_parameters()).keys() == shapes.keys()


def test_attaching_twice_is_refused(model):
    with pytest.raises(AdapterError, match="carries an adapter already"):
        attach_lora(model, SETTINGS, seed=0)


@pytest.mark.parametrize(
    "wrong", [{"rank": -1}, {"scale": 0.0}, {"scale": float("nan")}, {"layers": 0}, {"layers": -2}]
)
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="LoRA"):
        LoRASettings(**wrong)


def test_what_is_written_is_what_is_computed(model):
    weights = {name: np.full_like(value, 0.1) for name, value in read_adapter(model).items()}
    before = logits(model)
    write_adapter(model, weights)
    for name, value in read_adapter(model).items():
        np.testing.assert_array_equal(value, weights[name])
    assert np.abs(logits(model) - before).max() > 1e-3


UP = "model.layers.1.mlp.up_proj.lora_a"


def without(weights):
    del weights[UP]


def unknown(weights):
    weights["model.layers.9.mlp.up_proj.lora_a"] = weights[UP]


def of_another_rank(weights):
    weights[UP] = np.zeros((WIDTH, 4), np.float32)


def infinite(weights):
    weights[UP][0, 0] = np.inf


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without, r"lacks 'model.layers.1.mlp.up_proj.lora_a' \(1 weights missing"),
        (unknown, r"no adapter weight 'model.layers.9.mlp.up_proj.lora_a' \(1 unknown"),
        (of_another_rank, r"shape \(32, 4\) where the model takes \(32, 2\)"),
        (infinite, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_set(model, spoil, message):
    before = read_adapter(model)
    weights = {name: value + 1 for name, value in before.items()}
    spoil(weights)
    with pytest.raises(AdapterError, match=message):
        check_adapter(model, weights)
    with pytest.raises(AdapterError, match=message):
        write_adapter(model, weights)
    for name, value in read_adapter(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_of_a_model_without_an_adapter_all_weights_are_the_policys():
    whole = llama()
    attach_lora(whole, LoRASettings(rank=0), seed=0)
    assert read_adapter(whole).keys() == arrays_by_path(whole.parameters()).keys()
    changed = {name: value + 1 for name, value in read_adapter(whole).items()}
    write_adapter(whole, changed)
    assert all(np.array_equal(value, changed[name]) for name, value in read_adapter(whole).items())


def test_a_model_that_takes_no_weights_says_so():
    frozen = llama()
    frozen.freeze()
    with pytest.raises(AdapterError, match="attach_lora"):
        check_adapter(frozen, {})


def test_a_saved_adapter_comes_back_bit_for_bit(model, tmp_path):
    weights = read_adapter(model)
    save_adapter(tmp_path / "adapter.safetensors", weights, SETTINGS, version=7)
    loaded = load_adapter(tmp_path / "adapter.safetensors")
    assert (loaded.settings, loaded.version) == (SETTINGS, 7)
    assert loaded.weights.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(loaded.weights[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.safetensors"]


@pytest.mark.parametrize("missing", [True, False])
def test_where_nothing_can_be_written_the_old_one_stays(model, tmp_path: Path, monkeypatch, missing: bool):
    path = tmp_path / ("none" if missing else ".") / "adapter.safetensors"
    weights = read_adapter(model)
    if not missing:
        save_adapter(path, weights, SETTINGS, version=1)

        def full(*_: object) -> None:
            raise RuntimeError("[write] Unable to write")

        monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(AdapterError, match=r"^can't write .*/adapter.safetensors: .*that there is space$"):
        save_adapter(path, weights, SETTINGS, version=2)
    assert missing or load_adapter(path).version == 1
    assert len(list(tmp_path.iterdir())) == (0 if missing else 1)


def test_a_torn_foreign_or_missing_file_is_one_clear_error(model, tmp_path: Path):
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(AdapterError, match="there is no adapter at"):
        load_adapter(path)
    save_adapter(path, read_adapter(model), SETTINGS, version=1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="torn"):
        load_adapter(path)
    mx.save_safetensors(str(path), {"x": mx.zeros(2)})
    with pytest.raises(AdapterError, match="no adapter saved by selfplay-ray"):
        load_adapter(path)
