"""What is pickled for actors that don't find the modules of tests."""

from __future__ import annotations

import accounts
import spoken
from ray import cloudpickle

cloudpickle.register_pickle_by_value(accounts)
cloudpickle.register_pickle_by_value(spoken)
