"""What is pickled for actors that don't find the modules of tests, and programs that do."""

from __future__ import annotations

import os
from pathlib import Path

import accounts
import pytest
import spoken
from ray import cloudpickle

cloudpickle.register_pickle_by_value(accounts)
cloudpickle.register_pickle_by_value(spoken)


@pytest.fixture(scope="session")
def environment(environment: dict[str, str]) -> dict[str, str]:
    """That of a program of this folder."""
    here = Path(__file__).parent
    path = [environment["PYTHONPATH"], str(here), str(here.parent)]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}
