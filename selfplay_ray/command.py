"""What every command does around its work: errors end as one sentence, not as a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from selfplay_ray.errors import ConfigError, SelfPlayError, UnknownNameError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count it

Main = Callable[[Sequence[str]], int]


def run_command(main: Main, argv: Sequence[str] | None = None) -> int:
    """Call ``main`` with ``argv`` (the process's own by default) and return the exit code.

    An error raised on purpose becomes one line on stderr for each sentence in it, and 2 when what was asked for
    is wrong, else 1. Ctrl-C gives 130. Any other exception is a bug and keeps its traceback.
    """
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except (ConfigError, UnknownNameError) as error:
        _complain(error)
        return EXIT_USAGE
    except SelfPlayError as error:
        _complain(error)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _complain(error: SelfPlayError) -> None:
    for sentence in str(error).splitlines():
        sys.stderr.write(f"selfplay: {sentence}\n")
