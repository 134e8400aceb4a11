"""Serve a model over HTTP: `selfplay serve --model smollm2-135m --port 8000`."""

from __future__ import annotations

from selfplay_ray.command import run_command
from selfplay_ray.inference.server.command import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(run_command(main))
