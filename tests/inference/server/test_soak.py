"""The soak, for a few seconds: ``soak.py`` tells how to run it for minutes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from soak import HUNG_UP, Soak, returned, served, shapes


def test_many_clients_some_of_whom_hang_up_leave_nothing_behind(tiny: Path):
    with served(str(tiny), "8MiB") as (url, _):
        soak = Soak(url, "base", shapes(str(tiny)), seconds=6, clients=40, longest=45)
        asyncio.run(soak.run())
        assert soak.errors == []
        assert soak.tally[HUNG_UP] > 0
        assert soak.tally["published"] > 0
        assert soak.tally.total() > 40
        assert returned(url) == 0
