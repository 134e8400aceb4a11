"""The flags of `selfplay train dataset_rl`: which questions, and what makes a reply right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from selfplay_ray import cli
from selfplay_ray.config_sources import load_config
from selfplay_ray.jobs.train_dataset_rl import DatasetRLConfig, make_arena
from selfplay_ray.runtime import LocalRuntime
from selfplay_ray.tasks.dataset_rl import DatasetRLArena
from selfplay_ray.testing import MockInferenceClient


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"q": f"How many are {n}?", "unit": "apples", "a": f"{n} apples"} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arena(*flags: str) -> DatasetRLArena:
    return make_arena(load_config(DatasetRLConfig, flags, "selfplay train dataset_rl"))


def test_by_default_it_needs_nothing():
    made = arena()
    assert (len(made.problems), len(made.held_out)) == (88, 10)  # 100, of which 10 are held out and 2 shown
    assert made.problems[0]["prompt"].startswith("What is ")


def test_fields_template_and_limit(questions: Path):
    made = arena(
        "--dataset",
        str(questions),
        "--question-field=q",
        "--answer-field=a",
        "--prompt-template={question} ({unit})",
        "--limit=10",
        "--shots=0",
    )
    assert {p["prompt"] for p in (*made.problems, *made.held_out)} == {
        f"How many are {n}? (apples)" for n in range(10)
    }


@pytest.mark.parametrize(
    ("reward", "worth"),
    # of replies "7 apples", "7", "07 apples!", "there are 7 apples"
    [
        (["--reward=exact"], [1, 0, 0, 0]),
        (["--reward=numeric"], [1, 1, 1, 1]),
        ([], [1, 1, 1, 1]),
        (["--reward=regex"], [1, 0, 0, 1]),
        (["--reward=regex", "--pattern=^{answer}$"], [1, 0, 0, 0]),
    ],
)
async def test_what_makes_a_reply_right(questions: Path, reward: list[str], worth: list[int]):
    made = arena("--dataset", str(questions), "--question-field=q", "--answer-field=a", *reward)
    says = iter(["7 apples", "7", "07 apples!", "there are 7 apples"])
    made.bind(LocalRuntime(made, MockInferenceClient(lambda messages: next(says))))
    problem = {"prompt": "How many are 7?", "answer": "7 apples", "row": 7}
    results = [await made.run_episode("answer", problem) for _ in range(4)]
    assert [result.rewards["Answerer"] for result in results] == worth


async def test_a_program_is_worth_what_tests_it_passes(tmp_path: Path):
    path = tmp_path / "programs.jsonl"
    tests = ["assert double(2) == 4", "assert double(0) == 0"]
    rows = [{"text": f"Write double, please ({n}).", "test_list": tests} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--question-field=text", "--answer-field=test_list", "--shots=0", "--reward=code"]
    made = arena("--dataset", str(path), *flags, "--sandbox=unsafe-subprocess")
    says = iter(["def double(x): return 2 * x", "```python\ndef double(x): return 4\n```", "I can't."])
    made.bind(LocalRuntime(made, MockInferenceClient(lambda messages: next(says))))
    results = [await made.run_episode("answer", made.problems[0]) for _ in range(3)]
    assert [result.rewards["Answerer"] for result in results] == [1.0, 0.5, 0.0]


async def test_a_puzzle_of_reasoning_gym_is_scored_by_its_own_verifier():
    pytest.importorskip("reasoning_gym")
    made = arena("--dataset=reasoning-gym:chain_sum", "--limit=20", "--shots=0")
    assert (len(made.problems), len(made.held_out)) == (18, 2)
    problem = made.problems[0]
    says = iter([f"I say <answer>{problem['answer']}</answer>", "no idea"])
    made.bind(LocalRuntime(made, MockInferenceClient(lambda messages: next(says))))
    results = [await made.run_episode("answer", problem) for _ in range(2)]
    assert results[0].rewards["Answerer"] == 1
    assert results[1].rewards["Answerer"] < 0.1


@pytest.mark.parametrize(
    ("flags", "missing", "sentence"),
    [
        (["--dataset=x.jsonl"], "", "data set x.jsonl can't be read: No such file or directory"),
        (["--dataset=."], "", ". is no data set: give a file that ends in .jsonl, .json, .csv, .parquet"),
        (["--dataset=some/hub-id"], "datasets", "Hugging Face's datasets library isn't installed"),
        (["--dataset=reasoning-gym:chain_sum"], "reasoning_gym", "reasoning-gym isn't installed"),
        (["--reward=math-verify"], "math_verify", "math-verify isn't installed"),
        (["--reward=regex", "--pattern=("], "", "the pattern '(' is no regular expression"),
        (["--reward=luck"], "", "--reward luck is not possible: it must be 'auto', 'exact'"),
        (
            ["--answer-field=solution"],
            "",
            "row 0 of the data set has no 'solution'; its fields are question, answer",
        ),
        (["--reward=code"], "", "no tests in '0'; give lines like assert f(1, 2) == 3"),
        (["--shots=90"], "", "of 90 questions 90 are shown; that leaves none to train on"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    flags: list[str],
    missing: str,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "dataset_rl", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"selfplay: {sentence}")
    assert list(tmp_path.iterdir()) == []
