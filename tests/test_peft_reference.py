"""Adapters against PEFT itself: what is exported computes there what it does here, and the other way round.

torch, transformers and peft are heavy: these tests run where they are installed (the extra `peft`).
"""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from selfplay_ray.benchmarks.noise import noisy_weights  # noqa: E402 - after the skips
from selfplay_ray.export import export_fused, export_peft  # noqa: E402
from selfplay_ray.inference.adapter_files import read_any_adapter  # noqa: E402
from selfplay_ray.inference.peft import AdapterShape  # noqa: E402
from selfplay_ray.lora import (  # noqa: E402
    LoRASettings,
    SavedAdapter,
    attach_lora,
    read_adapter,
    write_adapter,
)
from selfplay_ray.models import load_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # those of other people's code

SETTINGS = LoRASettings(rank=8, scale=4.0)
TEXT = (
    "A prize is worth 40 coins. How many coins do you bid? Answer with one number, and say why: 7 + 8 = 15."
)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BOUND = 1e-3
EFFECT = 1.0  # logits move by more than this, or nothing would be shown


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> nn.Module:
    """The model with an adapter attached, here."""
    model, _ = load_model(smollm2)
    attach_lora(model, SETTINGS, seed=0)
    return model


@pytest.fixture
def theirs(smollm2: Path) -> Any:
    """The model in transformers."""
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokens(smollm2: Path) -> list[int]:
    return load_model(smollm2)[1].encode(TEXT)


def our_logits(model: nn.Module, tokens: list[int]) -> np.ndarray:
    return np.array(model(mx.array([tokens])))[0]


def their_logits(model: Any, tokens: list[int]) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def check_same(got: np.ndarray, expected: np.ndarray, base: np.ndarray) -> None:
    assert np.abs(expected - base).max() > EFFECT
    difference = float(np.abs(got - expected).max())
    print(f"largest difference {difference:.2e} among logits up to {np.abs(expected).max():.0f}")
    assert difference < BOUND


def noisy_adapter(model: nn.Module) -> SavedAdapter:
    shapes = {name: value.shape for name, value in read_adapter(model).items()}
    return SavedAdapter(noisy_weights(shapes, seed=1), SETTINGS, version=1)


def test_what_we_export_gives_our_logits_in_peft(ours, theirs, tokens, smollm2: Path, tmp_path: Path):
    base = their_logits(theirs, tokens)
    adapter = noisy_adapter(ours)
    write_adapter(ours, adapter.weights)
    export_peft(adapter, tmp_path / "out", str(smollm2))
    loaded = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "out"))
    check_same(their_logits(loaded, tokens), our_logits(ours, tokens), base)


def test_an_adapter_on_the_last_layers_stays_there(ours, theirs, tokens, tmp_path: Path):
    base = their_logits(theirs, tokens)
    weights = noisy_adapter(ours).weights
    last = {name: value for name, value in weights.items() if int(name.split(".")[2]) >= 26}
    write_adapter(ours, {name: value if name in last else 0 * value for name, value in weights.items()})
    export_peft(SavedAdapter(last, LoRASettings(rank=8, scale=4.0, layers=4), version=1), tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "out"))
    check_same(their_logits(loaded, tokens), our_logits(ours, tokens), base)


def test_a_folder_says_which_model_it_belongs_to(ours, tokens, smollm2: Path, tmp_path: Path):
    adapter = noisy_adapter(ours)
    write_adapter(ours, adapter.weights)
    export_peft(adapter, tmp_path / "out", "smollm2-135m")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    with loaded.disable_adapter():
        base = their_logits(loaded, tokens)
    check_same(their_logits(loaded, tokens), our_logits(ours, tokens), base)


def test_a_whole_model_gives_our_logits_in_transformers(ours, theirs, tokens, smollm2: Path, tmp_path: Path):
    base = their_logits(theirs, tokens)
    adapter = noisy_adapter(ours)
    write_adapter(ours, adapter.weights)
    export_fused(adapter, tmp_path / "out", str(smollm2))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    check_same(their_logits(loaded, tokens), our_logits(ours, tokens), base)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 8, "lora_alpha": 16, "target_modules": LINEAR},
        {"r": 4, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "lora_alpha": 7, "target_modules": LINEAR, "use_rslora": True},
        {"r": 8, "lora_alpha": 16, "target_modules": LINEAR, "layers_to_transform": [0, 7, 29]},
    ],
    ids=["all-linear-layers", "q-and-v-of-a-smaller-rank", "rslora", "three-layers"],
)
def test_what_peft_writes_gives_its_logits_here(settings, ours, theirs, tokens, tmp_path: Path):
    base = their_logits(theirs, tokens)
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    expected = their_logits(adapted, tokens)
    adapted.save_pretrained(tmp_path / "out")
    attached = read_adapter(ours)
    fresh = {name: value * name.endswith("a") for name, value in attached.items()}
    shape = AdapterShape({name: value.shape for name, value in attached.items()}, SETTINGS.scale)
    for start in (None, fresh):
        write_adapter(ours, read_any_adapter(tmp_path / "out", shape, start))
        check_same(our_logits(ours, tokens), expected, base)
