"""What went wrong in another process, as it went wrong there, without Ray's account around it."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from selfplay_ray.errors import ActorLostError, ClusterError, SelfPlayError
from selfplay_ray.runlog.plain_text import one_line


def get(reference: Any) -> Any:
    """``ray.get`` that raises our own errors as they were raised, without Ray's traceback around them.

    Raises:
        ActorLostError: the process of the actor that was asked was lost, and another may take its place.
        ClusterError: an actor was lost for good.
    """
    try:
        return ray.get(reference)
    except RayError as error:
        cause = root_cause(error)
        if isinstance(cause, SelfPlayError):
            raise cause from None
        if isinstance(error, ActorUnavailableError) and not isinstance(error, RayTaskError):
            raise ActorLostError(f"an actor was lost: {one_line(str(cause))}") from error
        if isinstance(cause, RayError):
            raise ClusterError(f"an actor was lost: {one_line(str(cause))}") from error
        raise


def root_cause(error: BaseException) -> BaseException:
    """What was raised first, where one actor called another that called another."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error
