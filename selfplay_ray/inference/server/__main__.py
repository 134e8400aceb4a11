"""``python -m selfplay_ray.inference.server``."""

from __future__ import annotations

from selfplay_ray.command import run_command
from selfplay_ray.inference.server.command import main

if __name__ == "__main__":
    raise SystemExit(run_command(main))
