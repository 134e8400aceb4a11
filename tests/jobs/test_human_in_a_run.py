"""A run on a cluster that asks a person over HTTP: the questions of its workers reach whoever has the address."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from processes import REPOSITORY, end, family

FLAGS = [
    "--num-steps",
    "1",
    "--batch-size",
    "4",
    "--min-trainable",
    "0",
    "--lora-rank",
    "2",
    "--name",
    "asked",
]


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The job, asking over HTTP."""
    job = str(REPOSITORY / "jobs" / "train_iterated_amplification.py")
    process = subprocess.Popen(
        [sys.executable, job, *FLAGS, "--human", "http", "--human-timeout", "100"],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    yield process
    if process.poll() is None:
        for pid in family(process.pid):
            end(pid)
    process.communicate()


def keep_answering(url: str, token: str, stopped: threading.Event) -> Callable[[], list[str]]:
    """A person who finds everything worth a 6, except for the first question, which gets no number."""
    seen: list[str] = []

    def work() -> None:
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as browser:
            while not stopped.is_set():
                try:
                    for question in browser.get("/waiting").json():
                        reply = "6" if seen else "no idea"
                        sent = browser.post("/answers", json={"number": question["number"], "answer": reply})
                        sent.raise_for_status()
                        seen.append(question["text"])
                except httpx.TransportError:
                    return  # the run is over
                time.sleep(0.05)

    thread = threading.Thread(target=work)
    thread.start()

    def done() -> list[str]:
        stopped.set()
        thread.join()
        return seen

    return done


def test_a_person_rates_what_workers_made(run: subprocess.Popen[str], tmp_path: Path):
    assert run.stderr is not None
    line = run.stderr.readline()
    address = re.fullmatch(r"you are asked at (http://127\.0\.0\.1:\d+)/#(\S+)\n", line)
    assert address, line
    answered = keep_answering(address[1], address[2], threading.Event())
    output, errors = run.communicate(timeout=200)
    questions = answered()
    assert (run.returncode, errors) == (0, ""), errors
    assert "step 1/1" in output
    assert questions
    assert all(question.startswith("What is ") for question in questions)
    folder = tmp_path / "runs" / "asked"
    trees = [json.loads(row) for row in (folder / "rollouts.jsonl").read_text().splitlines()]
    text = json.dumps(trees)
    assert text.count('"reply": "6"') == len(questions) - 1
    assert text.count('"reply": "no idea"') == 1
    assert address[2] not in "".join(
        path.read_text() for path in folder.glob("*.[jt]*")
    )  # the token stays out
