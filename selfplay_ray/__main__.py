"""``python -m selfplay_ray`` is ``selfplay``."""

import sys

from selfplay_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
