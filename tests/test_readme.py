"""What the README shows runs as printed, and what it lists is there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]


def block(containing: str) -> str:
    (found,) = (text for text in PYTHON if containing in text)
    return found


def run(script: str, folder: Path, *flags: str) -> str:
    (folder / "example.py").write_text(script, encoding="utf-8")
    command = [sys.executable, "example.py", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_example_is_fifty_lines_that_train(tmp_path: Path, tiny: Path):
    script = block("AuctionEpisode")
    assert len(script.splitlines()) <= 50
    output = run(
        script,
        tmp_path,
        "--num-steps",
        "2",
        "--batch-size",
        "8",
        "--model-path",
        str(tiny),
        "--min-trainable",
        "0",
    )
    assert "step 2/2" in output
    (folder,) = (tmp_path / "runs").iterdir()
    assert len((folder / "rollouts.jsonl").read_text().splitlines()) == 16


def test_the_example_without_ray_trains(tmp_path: Path, tiny: Path):
    """As a notebook would run it, with top-level await; on a tiny model that earns nothing."""
    script = block("simple_training_loop").replace("smollm2-135m", str(tiny))
    script = script.replace("num_steps=2", "num_steps=2, min_trainable=0")
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    notebook = f"import asyncio\nasyncio.run(eval(compile({script!r}, 'cell', 'exec', flags={flags})))\n"
    assert "'Proposer': RoleStats(count=4" in run(notebook, tmp_path)


@pytest.mark.parametrize(
    "script", [text for text in PYTHON if "AuctionEpisode" not in text and "await " not in text]
)
def test_the_other_examples_run(script: str, tmp_path: Path):
    run(script, tmp_path)


TREE = next(text for language, text in BLOCKS if language == "" and text.startswith("jobs/ "))


def test_the_file_tree_is_the_files_there_are():
    listed = tree_paths(TREE)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rooms = ("selfplay_ray/", "actors/", "jobs/")
    modules = {path for path in tracked.split() if path.startswith(rooms) and path.endswith(".py")}
    assert sorted(path for path in listed if not (ROOT / path).exists()) == []
    assert sorted(path for path in modules - listed if not path.endswith("__init__.py")) == []


def tree_paths(tree: str) -> set[str]:
    """The paths in an indented tree: a folder's line ends its name with a slash, what is in it stands deeper."""
    paths: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in filter(str.strip, tree.splitlines()):
        indent = len(line) - len(line.lstrip())
        name = line.split()[0]
        while folders and folders[-1][0] >= indent:
            folders.pop()
        path = (folders[-1][1] if folders else "") + name
        paths.add(path)
        if name.endswith("/"):
            folders.append((indent, path))
    return paths
