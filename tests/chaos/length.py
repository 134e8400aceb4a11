"""How long the tests of this folder go on: ``make chaos`` sets CHAOS=long."""

from __future__ import annotations

import os

LONG = os.environ.get("CHAOS") == "long"
