"""Train an Answerer on a data set of questions with known answers.

selfplay train dataset_rl --num-steps 30          # sums, which need no file
selfplay train dataset_rl --dataset questions.jsonl --question-field q --answer-field a --reward exact
selfplay train dataset_rl --dataset reasoning-gym:chain_sum           # pip install 'selfplay-ray[reasoning-gym]'
selfplay train dataset_rl --dataset openai/gsm8k --subset main --max-tokens 256         # 'selfplay-ray[datasets]'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.answers import Matching, same_number, same_text
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.integrations.hf_datasets import hub_rows
from selfplay_ray.integrations.math_verify import MathVerify
from selfplay_ray.integrations.reasoning_gym import ReasoningGym
from selfplay_ray.problems import READERS, Row, problems_from, read_rows
from selfplay_ray.program_tests import PassesTests, read_tests
from selfplay_ray.sandbox import AUTO, Limits, find_sandbox
from selfplay_ray.tasks.dataset_rl import ByAnswer, DatasetRLArena, Score, digit_sums

DIGIT_SUMS = "digit-sums"
GYM = "reasoning-gym:"
ROWS = 1000
Reward = Literal["auto", "exact", "numeric", "regex", "math-verify", "code"]


class DatasetRLConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(64, ge=1)
    """Replies per training step."""
    group_size: int = Field(8, ge=2)
    """Replies to each question, which are compared with each other."""
    max_tokens: int = Field(12, ge=1)
    """Most tokens in a reply."""

    dataset: str = DIGIT_SUMS
    """A .jsonl, .json, .csv or .parquet file, a data set's id on the Hugging Face hub, reasoning-gym:KIND, or
    digit-sums, which needs none of these."""
    subset: str = ""
    """Which of several data sets under one id on the hub."""
    split: str = "train"
    """Which split of a data set on the hub."""
    limit: int = Field(ROWS, ge=0)
    """Most rows taken, the first ones; 0 is all of them."""
    dataset_options: dict[str, int | float | str | bool] = Field(default_factory=dict)
    """What reasoning-gym is told about the kind."""
    question_field: str = "question"
    """The field that holds the question."""
    answer_field: str = "answer"
    """The field that holds the answer."""
    prompt_template: str = "{question}"
    """What is asked: {question} stands for the question, {NAME} for any other field."""
    system_prompt: str = ""
    """What the Answerer is told besides."""
    shots: int = Field(2, ge=0)
    """Questions of the data set that are shown, answered, before each one; they aren't trained on."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """Share of the questions that are for evaluation only; with 0 it gets those that are trained on."""

    reward: Reward = "auto"
    """What makes a reply right. exact: the answer's text; numeric: its number; regex: the pattern; math-verify: an
    equal expression; code: it is a program that passes the tests in the answer, assert f(1, 2) == 3 and the like; auto:
    reasoning-gym's own verifier, numeric for others."""
    pattern: str = r"(?<!\w){answer}(?!\w)"
    """For regex: what must be found in the reply; {answer} stands for the answer."""
    sandbox: str = AUTO
    """For code: what programs run in; auto is the best there is on this machine that holds."""


def make_arena(config: DatasetRLConfig) -> DatasetRLArena:
    """What is trained, or evaluated."""
    problems = problems_from(
        rows(config), config.question_field, config.answer_field, config.prompt_template, config.limit
    )
    if config.reward == "code":
        for problem in problems:
            read_tests(
                problem["answer"]
            )  # so that answers that are no tests are known before anything starts
    return DatasetRLArena(
        config.batch_size,
        problems,
        score(config),
        group_size=config.group_size,
        held_out=config.held_out,
        shots=config.shots,
        system_prompt=config.system_prompt,
        max_tokens=config.max_tokens,
    )


def rows(config: DatasetRLConfig) -> Iterable[Row]:
    """The rows of the data set, wherever it is."""
    if config.dataset == DIGIT_SUMS:
        return digit_sums()
    if config.dataset.startswith(GYM):
        return gym(config).rows()
    path = Path(config.dataset)
    if path.exists() or path.suffix in READERS:
        return read_rows(path)
    return hub_rows(config.dataset, config.subset, config.split)


def score(config: DatasetRLConfig) -> Score:
    """What a reply is worth."""
    match config.reward:
        case "auto":
            return gym(config) if config.dataset.startswith(GYM) else ByAnswer(same_number)
        case "exact":
            return ByAnswer(same_text)
        case "numeric":
            return ByAnswer(same_number)
        case "regex":
            return ByAnswer(Matching(config.pattern))
        case "math-verify":
            return ByAnswer(MathVerify())
        case "code":
            return ByAnswer(PassesTests(find_sandbox(config.sandbox), Limits()))


def gym(config: DatasetRLConfig) -> ReasoningGym:
    """reasoning-gym's kind of puzzles that the data set names."""
    return ReasoningGym.make(config.dataset.removeprefix(GYM), config.limit or ROWS, config.dataset_options)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(DatasetRLConfig, argv, "selfplay train dataset_rl")
    train(make_arena(config), config, "dataset_rl")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
