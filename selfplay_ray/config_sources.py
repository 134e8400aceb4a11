"""Where a configuration comes from: its defaults, then a TOML file, then flags made from its fields."""

from __future__ import annotations

import argparse
import difflib
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError

C = TypeVar("C", bound=RunConfig)

FLAG_ALIASES = {"max_staleness": ("--max-policy-lag",), "kl_coefficient": ("--kl-coef",)}
METAVARS: dict[object, str] = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


def load_config(config_class: type[C], argv: Sequence[str], prog: str) -> C:
    """The configuration that ``argv`` asks for: defaults, overridden by ``--config FILE``, overridden by flags.

    ``--resume RUN`` takes the place of ``--config``: what counts is what that run was started with.
    ``--dry-run`` prints it as TOML, which ``--config`` takes again, and exits.

    Raises:
        ConfigError: with one sentence for each key or flag that is unknown or has a value that isn't allowed.
        SystemExit: with 0, after ``--help`` or ``--dry-run``.
    """
    flags = parse_flags(config_class, argv, prog)
    path: Path | None = flags.pop("config", None)
    dry_run: bool = flags.pop("dry_run", False)
    if "resume" in flags:
        path = _config_of_run(flags, path)
    config = _validated(config_class, read_toml(path) if path else {}, flags, path)
    if dry_run:
        sys.stdout.write(config_toml(config))
        raise SystemExit(0)
    return config


def config_toml(config: RunConfig) -> str:
    """``config`` as TOML; what is None is left out, for TOML has no word for it."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, exclude={"resume"}))


def _config_of_run(flags: dict[str, Any], path: Path | None) -> Path:
    """The file with the settings of the run to resume, which keeps its name and its place.

    Raises:
        ConfigError: there is no such run, or another name, place or file is given as well.
    """
    for name, given in (("name", flags), ("output_dir", flags), ("config", {"config": path} if path else {})):
        if name in given:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} doesn't go with --resume: the run has its own already")
    folder = Path(flags["resume"])
    if folder.name in ("", ".."):
        folder = folder.resolve()  # it is the folder's name that is the run's
        flags["resume"] = str(folder)
    config = folder / "config.toml"
    if not config.is_file():
        there = sorted(other.parent.name for other in folder.parent.glob("*/config.toml"))
        known = f"; there are {', '.join(there)}" if there else ""
        raise ConfigError(f"there is no run to resume at {folder}{known}")
    flags.update(name=folder.name, output_dir=str(folder.parent))
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and values in the TOML file at ``path``.

    Raises:
        ConfigError: it can't be read, or isn't TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {path} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} is not valid TOML: {error}") from None


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"``, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


class SentenceParser(argparse.ArgumentParser):
    """A parser whose complaint is a ConfigError of one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))

    def parse_all(self, argv: Sequence[str], known: Iterable[str]) -> argparse.Namespace:
        """Parse ``argv``; of what is not among the ``known`` flags, say which was probably meant."""
        namespace, unknown = self.parse_known_args(argv)
        flags = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
        if flags:
            raise ConfigError("\n".join(f"unknown flag {flag}{suggestion(flag, known)}" for flag in flags))
        if unknown:
            raise ConfigError(f"unexpected argument {unknown[0]!r}; {self.prog} --help lists what there is")
        return namespace


def parse_flags(config_class: type[RunConfig], argv: Sequence[str], prog: str) -> dict[str, Any]:
    """The flags given, by field name: as text, for it is the field's type that makes sense of it."""
    parser = SentenceParser(
        prog=prog, description=config_class.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    actions = [
        parser.add_argument(
            "--config", metavar="FILE", type=Path, help="TOML file with any of these settings."
        ),
        parser.add_argument("--dry-run", action="store_true", help="Print the resolved settings and exit."),
    ]
    for name, field in config_class.model_fields.items():
        actions += _add_flag(parser, name, field)
    known = [option for action in actions for option in action.option_strings]
    return vars(parser.parse_all(argv, known))


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> list[argparse.Action]:
    """The field's flag; none for a field of many parts, which is for the TOML file."""
    options = ("--" + name.replace("_", "-"), *FLAG_ALIASES.get(name, ()))
    kind = _without_none(field.annotation)
    shown = "" if field.is_required() or field.default in (None, "", ()) else f" (default: {field.default})"
    text = (field.description or "").replace("%", "%%") + shown
    if kind is bool:
        return [parser.add_argument(*options, dest=name, action=argparse.BooleanOptionalAction, help=text)]
    if kind == tuple[str, ...]:
        return [parser.add_argument(*options, dest=name, metavar="TEXT", nargs="+", help=text)]
    if get_origin(kind) is Literal:
        metavar = "|".join(str(choice) for choice in get_args(kind))
    elif kind in METAVARS:
        metavar = METAVARS[kind]
    else:
        return []
    return [parser.add_argument(*options, dest=name, metavar=metavar, help=text)]


def _without_none(annotation: object) -> object:
    """``X`` for ``X | None``, anything else as it is."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    parts = [part for part in get_args(annotation) if part is not type(None)]
    return parts[0] if len(parts) == 1 else annotation


def _validated(
    config_class: type[C], file_values: Mapping[str, Any], flags: Mapping[str, Any], path: Path | None
) -> C:
    try:
        return config_class.model_validate({**file_values, **flags})
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ConfigError("\n".join(_sentence(p, config_class, flags, path) for p in problems)) from None


def _sentence(
    problem: ErrorDetails, config_class: type[RunConfig], flags: Mapping[str, Any], path: Path | None
) -> str:
    """One problem as one sentence: which key, where it stands, its value and what is allowed."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key} in {path}{suggestion(key, config_class.model_fields)}"
    if problem["type"] == "missing":
        return f"{key} is required: give --{key.replace('_', '-')} or set it in the configuration file"
    allowed = _allowed(problem["msg"])
    if not key:  # a check on several fields together
        return allowed
    value = problem["input"]
    if key in flags:
        given = " ".join(value) if isinstance(value, list) else value
        return f"--{key.replace('_', '-')} {given} is not possible: {allowed}"
    place = f" in {path}" if path else ""
    return f"{key} = {value!r}{place} is not possible: {allowed}"


def _allowed(message: str) -> str:
    """Pydantic's message as the end of a sentence of ours."""
    message = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    for subject in ("Input should ", "String should ", "List should "):
        if message.startswith(subject):
            return "it must " + message.removeprefix(subject)
    return message
