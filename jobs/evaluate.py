"""Is it better? `selfplay eval TASK --run runs/mine` plays what an evaluation plays with the run's adapter and with
the base model, in this process, and says by how much they differ, with intervals."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_type_hints

from rich.console import Console
from rich.text import Text

from selfplay_ray.arena import Arena
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import SentenceParser, load_config
from selfplay_ray.errors import ConfigError, EpisodeError
from selfplay_ray.evaluation import EPISODES, eval_requests, play
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.jobs.by_name import known_tasks, training_job
from selfplay_ray.jobs.evaluation_policies import (
    BASE,
    Engines,
    Policy,
    check_model,
    choose_policies,
    start_engines,
)
from selfplay_ray.jobs.evaluation_report import Sheet, as_json, as_table, notes
from selfplay_ray.runlog.evaluations import FOLDER, write_evaluation
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.plain_text import one_line
from selfplay_ray.runtime import LocalRuntime, ModelClient
from selfplay_ray.types import EpisodeRequest

WIDTH = 120  # of a table that is read from a file
MODES = {"sampled": [False], "greedy": [True], "both": [False, True]}  # whether it is greedy
MODES_HELP = {
    "sampled": "Only as in training, each role at its own temperature.",
    "greedy": "Only with the likeliest token, always.",
    "both": "Both ways (the default).",
}
EPISODES_HELP = (
    f"Root episodes of each policy; in whole batches, so it may be a few more (default: {EPISODES})."
)


def main(argv: Sequence[str]) -> int:
    """Evaluate as ``argv`` says, and print a table, or with ``--json`` one object.

    Raises:
        ConfigError: an unknown task, run, version or flag.
        AdapterError: the run has no adapter yet, or there is none at a path, or it doesn't fit the model.
        ModelError: there is no such model.
        EpisodeError: no episode came to an end.
    """
    options = _parse(argv)
    job = training_job(options.task)
    policies = choose_policies(options.run, options.version, options.adapter, options.against)
    config = _config(job.make_arena, options)
    if options.model_path is None:
        check_model(policies, config.model_path)
    arena: Arena = job.make_arena(config)
    arena.configure(config)
    with _at_work(), start_engines(config, policies) as engines:
        sheets = asyncio.run(_evaluate(arena, engines, policies, config, options))
    if options.run is not None:
        _keep(options.run, sheets)
    _check_that_something_was_played(sheets)
    _show(sheets, policies, config, options)
    return 0


async def _evaluate(
    arena: Arena, engines: Engines, policies: Sequence[Policy], config: RunConfig, options: argparse.Namespace
) -> list[Sheet]:
    """One sheet a mode. Everything is played at once: the engine decodes all policies in one batch."""
    chat = ChatTokenizer(engines.shared.model_path)
    for policy in policies:
        await engines.load(policy, config.lora_scale)
    clients = [engines.client_of(policy, chat, config.max_tokens) for policy in policies]
    arena.bind(LocalRuntime(arena, clients[0]))
    await arena.on_train_start()
    modes = [eval_requests(arena, options.episodes, greedy=greedy) for greedy in MODES[options.mode]]
    arenas = {
        policy.name: _played_by(client, arena) for policy, client in zip(policies, clients, strict=True)
    }
    sheets = await asyncio.gather(*(_sheet(arenas, requests) for requests in modes))
    await arena.on_train_end()
    return sheets


async def _sheet(arenas: Mapping[str, Arena], requests: Sequence[EpisodeRequest]) -> Sheet:
    played = await asyncio.gather(*(play(arena, requests) for arena in arenas.values()))
    return Sheet(dict(zip(arenas, played, strict=True)))


def _played_by(client: ModelClient, arena: Arena) -> Arena:
    fork = arena.fork()
    fork.bind(LocalRuntime(fork, client))
    return fork


def _config(make_arena: Callable[..., Arena], options: argparse.Namespace) -> RunConfig:
    """The run's, or the task's defaults; with what was given beside."""
    config_class: type[RunConfig] = get_type_hints(make_arena)["config"]
    flags = [] if options.run is None else ["--config", str(RunLog(options.run).config_path)]
    flags += [] if options.model_path is None else ["--model-path", options.model_path]
    flags += [] if options.seed is None else ["--seed", str(options.seed)]
    return load_config(config_class, flags, "selfplay eval")


def _keep(run: Path, sheets: Sequence[Sheet]) -> None:
    """Leave in the run's folder what was said."""
    for sheet in sheets:
        for name, evaluation in sheet.evaluations.items():
            write_evaluation(run, f"{name}-{sheet.kind}", evaluation.version, evaluation.results)


def _check_that_something_was_played(sheets: Sequence[Sheet]) -> None:
    for sheet in sheets:
        for name, evaluation in sheet.evaluations.items():
            if not evaluation.rewards and not evaluation.unscored:
                errors = [rollout.error for rollout in evaluation.rollouts if rollout.error is not None]
                last = errors[-1].strip().splitlines()[-1] if errors else "no role spoke"
                raise EpisodeError(f"no rollout of {name} has a reward; the last: {one_line(last)}")


def _show(
    sheets: list[Sheet], policies: Sequence[Policy], config: RunConfig, options: argparse.Namespace
) -> None:
    if options.json:
        about = {"task": options.task, "model": config.model_path, "seed": config.seed}
        about["run"] = None if options.run is None else str(options.run)
        about["adapters"] = {policy.name: str(policy.path) for policy in policies if policy.path is not None}
        sys.stdout.write(as_json(sheets, about) + "\n")
        return
    console = Console() if Console().is_terminal else Console(width=WIDTH)
    console.print(as_table(sheets))
    for note in notes(sheets):
        console.print(Text(note), soft_wrap=True)
    if options.run is not None:
        console.print(Text(f"what was said is in {options.run / FOLDER}"), soft_wrap=True)


@contextmanager
def _at_work() -> Iterator[None]:
    """Show a person that something goes on."""
    console = Console(stderr=True)
    if not console.file.isatty():
        yield
        return
    with console.status("playing"):
        yield


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = SentenceParser(
        prog="selfplay eval",
        description="Play a task's evaluation with a run's adapter and with the base model; the same episodes for "
        "both, and the same at every call.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    actions = [
        add("task", metavar="TASK", help=f"One of {known_tasks()}."),
        add(
            "--run", type=Path, metavar="RUN", help="Folder of the run whose settings and adapter are taken."
        ),
        add("--version", type=int, metavar="N", help="Which of the run's adapters (default: the last)."),
        add(
            "--adapter", type=Path, metavar="PATH", help="An adapter of another run's, or a folder of PEFT's."
        ),
        add("--against", default=BASE, metavar="base|PATH", help="What to compare it with (default: base)."),
        add("--episodes", type=int, default=EPISODES, metavar="N", help=EPISODES_HELP),
        add("--json", action="store_true", help="Print one JSON object."),
        add("--seed", metavar="INT", help="Other episodes than the run's seed makes."),
        add("--model-path", metavar="TEXT", help="The model, where the run's own isn't meant."),
    ]
    modes = parser.add_mutually_exclusive_group()
    for mode, text in MODES_HELP.items():
        actions.append(
            modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, help=text)
        )
    parser.set_defaults(mode="both")
    options = parser.parse_all(argv, known=[option for action in actions for option in action.option_strings])
    if options.episodes < 1:
        raise ConfigError(f"--episodes {options.episodes} is not possible: it must be at least 1")
    return options


if __name__ == "__main__":
    raise SystemExit(run_command(main))
