"""Running code that a model wrote, in a sandbox: ``find_sandbox()``, then ``await sandbox.run(program)``."""

from selfplay_ray.sandbox.find import AUTO, SANDBOXES, find_sandbox
from selfplay_ray.sandbox.functions import call_function, read_literal
from selfplay_ray.sandbox.limits import Limits, Outcome, Sandbox, Status

__all__ = [
    "AUTO",
    "SANDBOXES",
    "Limits",
    "Outcome",
    "Sandbox",
    "Status",
    "call_function",
    "find_sandbox",
    "read_literal",
]
