"""Any adapter on disk as one of a model's own shape: it computes the same, and what it lacks can be trained."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import json
from pathlib import Path

import numpy as np
import pytest

from selfplay_ray.errors import AdapterError
from selfplay_ray.inference import peft
from selfplay_ray.inference.adapter_files import read_any_adapter
from selfplay_ray.lora import LoRASettings, save_adapter

QUERY, OUT = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"
SHAPE = peft.AdapterShape(
    {f"{QUERY}.lora_a": (6, 4), f"{QUERY}.lora_b": (4, 5), f"{OUT}.lora_a": (5, 4), f"{OUT}.lora_b": (4, 6)},
    scale=2.0,
)


def random(names: list[str], rank: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rank)
    shapes = {n: s for n, s in SHAPE.shapes.items() if n.rpartition(".")[0] in names}
    sizes = {n: (s[0], rank) if n.endswith("a") else (rank, s[1]) for n, s in shapes.items()}
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


def fresh() -> dict[str, np.ndarray]:
    """As attached: A random, B zero."""
    return {n: v * n.endswith("a") for n, v in random([QUERY, OUT], 4).items()}


def product(weights: dict[str, np.ndarray], layer: str, scale: float) -> np.ndarray:
    """What the adapter adds to the weights of ``layer``, transposed: scale · A B."""
    return scale * weights[f"{layer}.lora_a"] @ weights[f"{layer}.lora_b"]


def in_peft(folder: Path, weights: dict[str, np.ndarray], scale: float) -> Path:
    peft.save_peft(folder, weights, scale, None)
    return folder


def of_a_run(path: Path, weights: dict[str, np.ndarray], scale: float) -> Path:
    rank = next(value.shape[1] for name, value in weights.items() if name.endswith("a"))
    save_adapter(path, weights, LoRASettings(rank, scale), version=3)
    return path


def test_ours_and_pefts_are_read_bit_for_bit(tmp_path: Path):
    weights = random([QUERY, OUT], 4)
    paths = [in_peft(tmp_path / "p", weights, 2.0), of_a_run(tmp_path / "v.safetensors", weights, 2.0)]
    for path in paths:
        read = read_any_adapter(path, SHAPE)
        assert read.keys() == weights.keys()
        assert all(np.array_equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize("write", [in_peft, of_a_run])
def test_a_smaller_one_of_another_scale_computes_the_same_and_what_it_lacks_is_as_if_new(
    write, tmp_path: Path
):
    weights, new = random([QUERY], 3), fresh()
    read = read_any_adapter(write(tmp_path / "a.safetensors", weights, 0.7), SHAPE, new)
    np.testing.assert_allclose(product(read, QUERY, 2.0), product(weights, QUERY, 0.7), rtol=1e-5, atol=1e-6)
    assert not product(read, OUT, 2.0).any()
    # A and B both zero would be a saddle: neither would ever get a gradient.
    assert np.array_equal(read[f"{OUT}.lora_a"], new[f"{OUT}.lora_a"])
    assert np.array_equal(read[f"{QUERY}.lora_a"][:, 3], new[f"{QUERY}.lora_a"][:, 3])
    assert not read[f"{QUERY}.lora_b"][3].any()
    assert new.keys() == fresh().keys()
    assert all(np.array_equal(new[name], value) for name, value in fresh().items())  # not written into


@pytest.mark.parametrize("write", [in_peft, of_a_run])
def test_a_larger_one_says_what_rank_it_takes(write, tmp_path: Path):
    larger = {
        n: np.ones((s[0], 8) if n.endswith("a") else (8, s[1]), np.float32) for n, s in SHAPE.shapes.items()
    }
    path = write(tmp_path / "a.safetensors", larger, 2.0)
    with pytest.raises(
        AdapterError, match="can't be used: the adapter has rank 8, and there is only room for 4"
    ):
        read_any_adapter(path, SHAPE)


def test_of_another_model(tmp_path: Path):
    path = of_a_run(tmp_path / "a.safetensors", {"model.layers.7.x.lora_a": np.ones((2, 4), np.float32)}, 2.0)
    with pytest.raises(
        AdapterError, match=r"a.safetensors can't be used: the model has no adapter weight .*layers\.7"
    ):
        read_any_adapter(path, SHAPE)


def test_where_there_is_none(tmp_path: Path):
    with pytest.raises(AdapterError, match=r"/none can't be used: there is no adapter at"):
        read_any_adapter(tmp_path / "none", SHAPE)
    with pytest.raises(
        AdapterError, match=r"can't be used: it has no adapter_config.json; give a folder of PEFT's"
    ):
        read_any_adapter(tmp_path, SHAPE)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    with pytest.raises(AdapterError, match=r"there is no adapter in .*adapter_model.safetensors"):
        read_any_adapter(tmp_path, SHAPE)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(AdapterError, match="is pickled, and may run code when read; save it with safe_seri"):
        read_any_adapter(tmp_path, SHAPE)


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"peft_type": "IA3"}, "peft_type: Input should be 'LORA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "olora", "use_dora": True}, "use_dora, init_lora_weights"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    ],
)
def test_what_only_looks_like_plain_lora(setting: dict[str, object], word: str, tmp_path: Path):
    folder = in_peft(tmp_path / "p", random([QUERY, OUT], 4), 2.0)
    config = json.loads((folder / peft.CONFIG_FILE).read_text())
    (folder / peft.CONFIG_FILE).write_text(json.dumps({**config, **setting}))
    with pytest.raises(AdapterError, match=word):
        read_any_adapter(folder, SHAPE)


def test_settings_of_training_do_not_matter(tmp_path: Path):
    folder = in_peft(tmp_path / "p", random([QUERY, OUT], 4), 2.0)
    config = json.loads((folder / peft.CONFIG_FILE).read_text())
    more = {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "use_dora": False, "rank_pattern": {}}
    (folder / peft.CONFIG_FILE).write_text(json.dumps({**config, **more}))
    assert read_any_adapter(folder, SHAPE).keys() == SHAPE.shapes.keys()
