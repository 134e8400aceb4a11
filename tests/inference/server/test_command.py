"""``python -m selfplay_ray.inference.server``: it says where it is, serves, and goes when told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from selfplay_ray.command import run_command
from selfplay_ray.inference.server.command import KEY_VARIABLE
from selfplay_ray.inference.server.guards import is_loopback
from selfplay_ray.jobs.serve import main

COMMAND = [sys.executable, "-m", "selfplay_ray.inference.server"]


def test_it_serves_until_interrupted(tiny: Path):
    flags = ["--model", str(tiny), "--served-model-name", "tiny", "--port", "0", "--max-batch-size", "2"]
    flags += ["--max-adapters", "3", "--max-waiting", "5", "--kv-cache-bytes", "64MiB"]
    process = subprocess.Popen(
        [*COMMAND, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, KEY_VARIABLE: ""},
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving tiny on http://127.0.0.1:")
        url = line.split()[3].rstrip(";")
        answer = httpx.post(f"{url}/completions", json={"prompt": "x", "max_tokens": 3}, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["--model", "nowhere"], 1, "unknown model 'nowhere': it is neither"),
        (["--host", "0.0.0.0"], 2, "--host 0.0.0.0 lets others in: give --api-key"),
        (["--host", "no.such.host.invalid", "--api-key", "k"], 1, "there is no host 'no.such.host.invalid'"),
        (["--port", "70000"], 2, "--port 70000 is not possible"),
        (["--lora-rank", "-1"], 2, "--lora-rank and --max-waiting must be 0 or more"),
        (["--max-adapters", "0"], 2, "--lora-rank and --max-waiting must be 0 or more"),
        (
            ["--kv-cache-bytes", "much"],
            2,
            "--kv-cache-bytes/--kv-cache-memory-bytes: 'much' is no size: write it",
        ),
        (["--lora-scale", "0", "--model", "TINY"], 2, "a LoRA scale of 0.0 switches the adapter off"),
        (["--prot", "1"], 2, "unknown flag --prot; did you mean --port?"),
    ],
)
def test_what_is_wrong_gets_one_sentence(
    argv: list[str], code: int, sentence: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    given = [str(tiny) if word == "TINY" else word for word in argv]
    assert run_command(main, [*given, *([] if "--port" in argv else ["--port", "0"])]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"selfplay: {sentence}")


def test_a_port_in_use_is_said_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_command(main, ["--port", str(port), "--model", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith(f"selfplay: port {port} on 127.0.0.1 can't be had: ")


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_only_loopback_is_alone(host: str, alone: bool):
    assert is_loopback(host) is alone
