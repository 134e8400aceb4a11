"""Who is asked in a run: a person in the browser, one at the terminal, or nobody."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

from selfplay_ray.errors import ConfigError
from selfplay_ray.human.desk import Desk
from selfplay_ray.human.person import HttpPerson, Person
from selfplay_ray.human.server import DeskServer
from selfplay_ray.human.terminal import TerminalClerk, write_to_terminal

HumanKind = Literal["terminal", "http", "none"]


@contextmanager
def human_at_hand(
    kind: HumanKind, timeout: float, host: str = "127.0.0.1", port: int = 0
) -> Iterator[Person | None]:
    """The person that the episodes of a run may ask while the context is open, in whatever process they play; None for
    "none". Says on stderr where they are.

    Raises:
        ConfigError: "terminal" without a terminal.
        ClusterError: ``host`` and ``port`` (0: any that is free) can't be had.
    """
    if kind == "none":
        write_to_terminal("nobody is asked (--human none): what a person would say is computed\n")
        yield None
        return
    in_terminal = kind == "terminal"
    if in_terminal and not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask a person in; use --human http")
    desk, token = Desk(timeout, one_by_one=in_terminal), secrets.token_urlsafe(24)
    with ExitStack() as stack:
        server = stack.enter_context(DeskServer(desk, token, host, port))
        if in_terminal:
            stack.enter_context(TerminalClerk(desk, sys.stdin.fileno()))
        else:
            write_to_terminal(f"you are asked at {server.url}/#{token}\n")
        stack.callback(desk.close)
        yield HttpPerson(server.url, token)
