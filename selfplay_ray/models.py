"""From a model's name to its folder, and from the folder to a model.

A name is ``smollm2-135m`` (which needs no model hub), a local folder, or a hub id such as ``org/name``.
Finding a model imports no MLX, so that processes which only need its tokenizer stay light.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from selfplay_ray.blas import require_blas
from selfplay_ray.errors import ModelError
from selfplay_ray.heap import return_large_blocks

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

SMOLLM2 = "smollm2-135m"
SMOLLM2_FOLDER = "smollm2-135m-f32-1"  # the last number counts our ways of converting it
CACHE_VARIABLE = "SELFPLAY_CACHE"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")

log = logging.getLogger("selfplay_ray")


def resolve_model(name: str) -> Path:
    """The folder of model ``name``, fetched and converted first where need be.

    Raises:
        ModelError: there is no such model, it can't be fetched, or the folder isn't a model's.
    """
    if name == SMOLLM2:
        return _smollm2()
    path = Path(name).expanduser()
    if path.exists():
        check_model_folder(path)
        return path
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise ModelError(
            f"unknown model {name!r}: it is neither {SMOLLM2!r}, nor a folder that exists, nor a hub id like org/name"
        )
    return _from_hub(name)


def load_model(name_or_path: str | Path) -> tuple[nn.Module, TokenizerWrapper]:
    """Model and tokenizer; on a CPU in float32, the only type that is fast there.

    Load it in the thread that will use it: MLX's streams and lazy arrays belong to a thread.

    Raises:
        ModelError: there is no such model, or MLX can't read it.
        BLASError: MLX would be unusably slow here (see ``selfplay_ray.blas``).
    """
    require_blas()
    import mlx.core as mx
    from mlx_lm import load

    from selfplay_ray.swiglu import replace_swiglu

    folder = resolve_model(str(name_or_path))
    return_large_blocks()
    try:
        model, tokenizer = load(str(folder))[:2]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the model in {folder} can't be loaded: {error}") from error
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        replace_swiglu(model)
    return model, tokenizer


def check_model_folder(path: Path) -> None:
    """Raise ModelError, naming what is missing, unless ``path`` looks like a model's folder."""
    if not path.is_dir():
        raise ModelError(f"not a model folder: {path} is a file")
    if not (path / "config.json").is_file():
        raise ModelError(f"not a model folder: {path} lacks config.json")
    if not any(path.glob("*.safetensors")):
        raise ModelError(f"not a model folder: {path} lacks weights (*.safetensors)")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"not a model folder: {path} lacks a tokenizer (tokenizer.json)")


def cache_folder() -> Path:
    """Where converted models are kept: ``$SELFPLAY_CACHE``, or the user's cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "selfplay-ray"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfplay-ray"


def _smollm2() -> Path:
    """Converted once a user: the lock makes a second process wait, the rename makes the folder whole or absent."""
    models = cache_folder() / "models"
    folder = models / SMOLLM2_FOLDER
    if folder.is_dir():
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f"{SMOLLM2_FOLDER}.lock"):
            if not folder.is_dir():
                _build_smollm2(folder)
    except OSError as error:
        raise ModelError(
            f"{SMOLLM2} can't be kept in {models} ({error}); set {CACHE_VARIABLE} to a folder with 1 GB free"
        ) from error
    return folder


def _build_smollm2(folder: Path) -> None:
    require_blas()
    from selfplay_ray.smollm2 import build_folder

    downloads, unfinished = folder.with_suffix(".download"), folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that died here
    build_folder(unfinished, downloads)
    unfinished.replace(folder)
    shutil.rmtree(downloads)
    log.info("smollm2-135m is ready in %s", folder)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # whichever HTTP library this version of it stands on

    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {name!r} is no local folder and can't be fetched from the model hub: {reason}"
        ) from error
    check_model_folder(folder)
    return folder
