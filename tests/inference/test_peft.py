"""Adapters in PEFT's shape: there and back, smaller ones, and the same product."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from selfplay_ray.errors import AdapterError
from selfplay_ray.inference import peft

QUERY, OUT = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"
SHAPE = peft.AdapterShape(
    {f"{QUERY}.lora_a": (6, 4), f"{QUERY}.lora_b": (4, 5), f"{OUT}.lora_a": (5, 4), f"{OUT}.lora_b": (4, 6)},
    scale=2.0,
)


def adapter(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPE.shapes.items()}


def config(r: int = 4, alpha: float = 8.0, **more: object) -> peft.PeftConfig:
    return peft.read_peft_config(json.dumps({"r": r, "lora_alpha": alpha, **more}))


def test_there_and_back_is_the_same(tmp_path: Path):
    ours = adapter()
    peft.save_peft(tmp_path / "live-v1", ours, SHAPE.scale, "base")
    file = (tmp_path / "live-v1" / peft.WEIGHTS_FILE).read_bytes()
    read = peft.read_peft_config((tmp_path / "live-v1" / peft.CONFIG_FILE).read_bytes())
    assert (read.r, read.lora_alpha, read.scale) == (4, 8.0, 2.0)
    back = peft.from_peft(peft.read_safetensors(file), read, SHAPE)
    assert back.keys() == ours.keys()
    assert all(np.array_equal(back[name], ours[name]) for name in ours)


def test_names_shapes_and_configuration_are_pefts(tmp_path: Path):
    peft.save_peft(tmp_path / "a", adapter(), SHAPE.scale, "base")
    with safe_open(tmp_path / "a" / peft.WEIGHTS_FILE, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor(f"base_model.model.{QUERY}.lora_A.weight").shape == (4, 6)  # [r, in]
        assert file.get_tensor(f"base_model.model.{QUERY}.lora_B.weight").shape == (5, 4)  # [out, r]
    written = json.loads((tmp_path / "a" / peft.CONFIG_FILE).read_text())
    assert written["target_modules"] == ["o_proj", "q_proj"]
    assert written["layers_to_transform"] == [0, 1]
    assert (written["peft_type"], written["r"], written["lora_alpha"]) == ("LORA", 4, 8)
    with pytest.raises(AdapterError, match="exists already"):
        peft.save_peft(tmp_path / "a", adapter(), SHAPE.scale, "base")


@given(st.integers(1, 4), st.sampled_from([0.5, 1.0, 3.0, 16.0]), st.booleans())
def test_a_smaller_adapter_adds_the_same_to_a_layer(rank: int, alpha: float, rslora: bool):
    rng = np.random.default_rng(rank)
    a, b = rng.standard_normal((rank, 6)), rng.standard_normal((5, rank))
    weights = {
        f"base_model.model.{QUERY}.lora_A.weight": a.astype(np.float32),
        f"base_model.model.{QUERY}.lora_B.default.weight": b.astype(np.float32),
    }
    ours = peft.from_peft(weights, config(rank, alpha, use_rslora=rslora), SHAPE)
    x = rng.standard_normal(6)
    # PEFT: alpha/r (or alpha/√r) B A x; ours: scale (x lora_a) lora_b.
    theirs = alpha / (rank**0.5 if rslora else rank) * b @ a @ x
    assert SHAPE.scale * x @ ours[f"{QUERY}.lora_a"] @ ours[f"{QUERY}.lora_b"] == pytest.approx(
        theirs, rel=1e-4, abs=1e-4
    )
    assert not ours[f"{OUT}.lora_a"].any()  # what it doesn't cover stays as it is
    assert not ours[f"{OUT}.lora_b"].any()


def test_weights_of_another_scale_compute_the_same():
    ours = adapter()
    same = peft.rescaled(ours, 8.0, SHAPE)  # 8 / 2 = 4 times as much on B
    assert np.array_equal(same[f"{QUERY}.lora_b"], 4 * ours[f"{QUERY}.lora_b"])
    assert np.array_equal(same[f"{QUERY}.lora_a"], ours[f"{QUERY}.lora_a"])


def test_every_type_an_adapter_comes_in_is_read():
    values = np.array([[1.0, -2.5], [0.0, 3.0]], np.float32)
    for kind in (np.float16, np.float32, np.float64):
        (read,) = peft.read_safetensors(save({"x": values.astype(kind)})).values()
        assert read.dtype == np.float32
        assert np.array_equal(read, values)
    # bfloat16 is the upper half of float32, which numpy has no name for: put it together by hand.
    data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, len(data)]}}).encode()
    raw = len(header).to_bytes(8, "little") + header + data
    assert np.array_equal(peft.read_safetensors(raw)["x"], values)
    assert peft.read_metadata(raw) == {}
    assert peft.read_metadata(save({"x": values}, metadata={"a": "b"})) == {"a": "b"}


@given(st.binary(max_size=60))
def test_bytes_that_are_no_safetensors_are_refused(data: bytes):
    try:
        peft.read_safetensors(data)
    except AdapterError:
        return
    assert peft.read_metadata(data) == {}  # a file without tensors


@pytest.mark.parametrize(
    "change",
    [{"r": 0}, {"lora_alpha": -1}, {"lora_alpha": "x"}, {"use_dora": True}, {"alpha_pattern": {"q_proj": 2}}],
)
def test_what_is_no_plain_lora_is_refused_by_name(change: dict[str, object]):
    with pytest.raises(AdapterError, match=next(iter(change))):
        peft.read_peft_config(json.dumps({"r": 4, "lora_alpha": 8, **change}))


def test_only_an_adapters_weights_have_names_of_pefts():
    with pytest.raises(AdapterError, match="is no weight of an adapter"):
        peft.to_peft({"model.embed_tokens.weight": np.zeros((2, 2))})


def test_adapters_of_experts_have_no_form_in_peft():
    with pytest.raises(AdapterError, match="no format for adapters on the experts of a mixture"):
        peft.to_peft({"model.layers.0.mlp.switch_mlp.up_proj.lora_a": np.zeros((2, 4, 8))})
