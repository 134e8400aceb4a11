"""What is exported is what was trained: read back bit for bit, computing the same; or nothing is left of it."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import json
import os
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from limits import files_of_at_most
from mlx_lm.utils import quantize_model, save_config, save_model
from tiny_model import write_tiny_model

from selfplay_ray.benchmarks.noise import noisy_weights
from selfplay_ray.errors import AdapterError, ConfigError, ModelError
from selfplay_ray.export import export_fused, export_peft
from selfplay_ray.inference.adapter_files import read_any_adapter
from selfplay_ray.inference.peft import AdapterShape
from selfplay_ray.lora import LoRASettings, SavedAdapter, attach_lora, read_adapter, write_adapter
from selfplay_ray.models import load_model

SETTINGS = LoRASettings(rank=3, scale=0.7)  # 3 · 0.7 / 3 isn't 0.7
TOKENS = mx.array([[1, 900, 17, 4000, 3, 3, 256]])


@pytest.fixture(scope="module")
def quantized(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in 4 bits, as mlx-lm writes it."""
    folder = tmp_path_factory.mktemp("export") / "quantized"
    model, tokenizer, config = mlx_lm.load(str(tiny), return_config=True)
    model, config = quantize_model(model, config, group_size=32, bits=4)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    tokenizer.save_pretrained(folder)
    return folder


def noisy_adapter(model: Path, settings: LoRASettings = SETTINGS) -> tuple[SavedAdapter, np.ndarray]:
    """An adapter with an effect, and the logits of ``model`` with it."""
    network, _ = load_model(model)
    attach_lora(network, settings, seed=0)
    weights = noisy_weights({name: value.shape for name, value in read_adapter(network).items()}, seed=1)
    base = logits(network)
    write_adapter(network, weights)
    adapted = logits(network)
    assert np.abs(adapted - base).max() > 0.01
    return SavedAdapter(weights, settings, version=4), adapted


def logits(network) -> np.ndarray:
    return np.array(network(TOKENS).astype(mx.float32))


def test_a_folder_of_pefts_reads_back_bit_for_bit(tiny: Path, tmp_path: Path):
    adapter, _ = noisy_adapter(tiny)
    export_peft(adapter, tmp_path / "out", str(tiny))
    shape = AdapterShape({name: value.shape for name, value in adapter.weights.items()}, SETTINGS.scale)
    read = read_any_adapter(tmp_path / "out", shape)
    assert read.keys() == adapter.weights.keys()
    assert all(np.array_equal(read[name], value) for name, value in adapter.weights.items())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("model", "noted"), [(None, None), ("org/name", "org/name")])
def test_the_base_is_noted_as_others_find_it(
    model: str | None, noted: str | None, tiny: Path, tmp_path: Path
):
    export_peft(noisy_adapter(tiny)[0], tmp_path / "out", model)
    assert (
        json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == noted
    )


def test_the_default_model_is_noted_as_its_folder(smollm2: Path, tiny: Path, tmp_path: Path):
    export_peft(noisy_adapter(tiny)[0], tmp_path / "out", "smollm2-135m")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(smollm2)


@pytest.mark.parametrize("layers", [-1, 1])
def test_a_whole_model_computes_what_base_and_adapter_do(layers: int, tiny: Path, tmp_path: Path):
    adapter, adapted = noisy_adapter(tiny, LoRASettings(3, 0.7, layers))
    export_fused(adapter, tmp_path / "out", str(tiny))
    fused, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    assert np.abs(logits(fused) - adapted).max() < 1e-4
    assert tokenizer.encode("hello") == mlx_lm.load(str(tiny))[1].encode("hello")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tiny / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_quantized_model_comes_out_dequantized(quantized: Path, tmp_path: Path):
    adapter, adapted = noisy_adapter(quantized)
    export_fused(adapter, tmp_path / "out", str(quantized))
    fused, _ = mlx_lm.load(str(tmp_path / "out"))
    assert np.abs(logits(fused) - adapted).max() < 1e-4
    assert "quantiz" not in (tmp_path / "out" / "config.json").read_text()


def test_weights_keep_the_models_type(tiny: Path, tmp_path: Path):
    model, _, config = mlx_lm.load(str(tiny), return_config=True)
    model.set_dtype(mx.bfloat16)
    half = tmp_path / "half"
    save_model(half, model)
    save_config(config, half / "config.json")
    (half / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    export_fused(noisy_adapter(tiny)[0], tmp_path / "out", str(half))
    assert {value.dtype for value in mx.load(str(tmp_path / "out" / "model.safetensors")).values()} == {
        mx.bfloat16
    }


def export(kind: str, adapter: SavedAdapter, out: Path, model: Path) -> None:
    {"peft": export_peft, "fused": export_fused}[kind](adapter, out, str(model))


@pytest.mark.parametrize("kind", ["peft", "fused"])
def test_what_is_there_is_not_written_over(kind: str, tiny: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"/out exists already; give a folder that isn't there yet$"):
        export(kind, noisy_adapter(tiny)[0], tmp_path / "out", tiny)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["peft", "fused"])
@pytest.mark.parametrize("size", [0, 10_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(kind: str, size: int, tiny: Path, tmp_path: Path):
    adapter, _ = noisy_adapter(tiny)
    with (
        files_of_at_most(size),
        pytest.raises(ModelError, match=r"^can't write .*/out: .*that there is space$"),
    ):
        export(kind, adapter, tmp_path / "out", tiny)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["peft", "fused"])
def test_where_nothing_may_be_written(kind: str, tiny: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ModelError, match=r"^can't write .*/file/out: Not a directory; check that it may be written"
    ):
        export(kind, noisy_adapter(tiny)[0], tmp_path / "file" / "out", tiny)


def test_an_adapter_of_another_model_is_refused_before_anything_is_written(tiny: Path, tmp_path: Path):
    other = write_tiny_model(tmp_path / "other", layers=1)
    with pytest.raises(AdapterError, match=r"the model has no adapter weight 'model.layers.1"):
        export_fused(noisy_adapter(tiny)[0], tmp_path / "out", str(other))
    assert os.listdir(tmp_path) == ["other"]


def test_a_model_that_is_not_there(tiny: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="unknown model 'gone'"):
        export_fused(noisy_adapter(tiny)[0], tmp_path / "out", "gone")
