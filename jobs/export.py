"""Take what was trained elsewhere: `selfplay export runs/mine OUT [--version N] [--fuse] [--model MODEL]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from selfplay_ray.command import run_command
from selfplay_ray.config_sources import SentenceParser
from selfplay_ray.errors import ConfigError
from selfplay_ray.run_adapters import RunAdapter, find_adapter


def main(argv: Sequence[str]) -> int:
    """Export what ``argv`` names, and say what was written.

    Raises:
        ConfigError: a flag is wrong, there is no such run or version, or the folder to write exists already.
        ModelError: the adapter doesn't fit the model, or can't be written.
    """
    options = _parse(argv)
    found = find_adapter(options.source, options.version)
    model = options.model or found.model
    _export(found, model, options.out, fuse=options.fuse)
    return 0


def _export(found: RunAdapter, model: str | None, out: Path, *, fuse: bool) -> None:
    # MLX takes its time to load, and a mistyped path shouldn't.
    from selfplay_ray.export import export_fused, export_peft
    from selfplay_ray.lora import load_adapter

    adapter = load_adapter(found.path)
    settings = adapter.settings
    how = f"rank {settings.rank}, scale {settings.scale:g}" if settings.rank else "all weights"
    what = f"version {adapter.version} ({how})"
    if settings.rank and not fuse:
        export_peft(adapter, out, model)
        sys.stdout.write(f"{what} is in {out}, a LoRA adapter in PEFT's format\n")
        return
    if model is None:
        raise ConfigError(
            f"{found.path} lies in no run's folder, so that its model isn't known; name it with --model"
        )
    export_fused(adapter, out, model)
    sys.stdout.write(f"{model} with {what} is in {out}, a whole model\n")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = SentenceParser(
        prog="selfplay export",
        description="Write a run's adapter as PEFT does, or with --fuse (and where all weights were trained) the "
        "whole model.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", type=Path, metavar="RUN_OR_ADAPTER", help="A run's folder or an adapter's file."
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="Folder to write, which must not exist yet.")
    parser.add_argument(
        "--version", type=int, metavar="N", help="Which of the run's adapters (default: the last)."
    )
    parser.add_argument("--fuse", action="store_true", help="Write a whole model with the adapter in it.")
    parser.add_argument("--model", help="The model that was trained (default: what the run says).")
    return parser.parse_all(argv, known=["--version", "--fuse", "--model"])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
