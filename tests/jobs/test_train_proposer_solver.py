"""The main job, by each of the ways it is started."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import REPOSITORY, alive, end, family
from ray.job_submission import JobStatus, JobSubmissionClient

FLAGS = ["--num-steps", "2", "--batch-size", "2", "--n-solver-rollouts", "2", "--name", "run"]


def check_run(folder: Path, tiny: Path) -> None:
    config = tomllib.loads((folder / "config.toml").read_text())
    assert (config["n_solver_rollouts"], config["model_path"]) == (2, str(tiny))
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["version"] for step in steps] == [1, 2]
    assert all(step["episodes/finished"] >= 2 for step in steps)
    assert (folder / "checkpoints" / "v000002").is_dir()


def test_dry_run_starts_nothing(tmp_path: Path, environment: dict[str, str]):
    command = [sys.executable, str(REPOSITORY / "jobs" / "train_proposer_solver.py"), "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert tomllib.loads(done.stdout)["n_solver_rollouts"] == 8
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def beside_a_cluster(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of a machine on which somebody has started a cluster of its own, in a folder of its own."""
    with tempfile.TemporaryDirectory(
        dir="/tmp", prefix="r", ignore_cleanup_errors=True
    ) as folder:  # a short path
        yield {**environment, "RAY_TMPDIR": folder}


@pytest.fixture(scope="module")
def cluster(beside_a_cluster: dict[str, str]) -> Iterator[str]:
    """What `ray start --head` starts; the address of its jobs."""
    port, dashboard = free_port(), free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"]
    settings = ["--port", str(port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    # Jobs are run by the agent, which has a fixed port unless told otherwise: that of any other Ray here as well.
    settings += ["--dashboard-agent-listen-port", str(free_port())]
    head = subprocess.Popen(
        [*command, *settings, "--disable-usage-stats", "--include-dashboard", "true"],
        env=beside_a_cluster,
        cwd=beside_a_cluster["RAY_TMPDIR"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield f"http://127.0.0.1:{dashboard}"
    processes = family(head.pid)
    head.send_signal(signal.SIGTERM)
    head.wait(30)
    for pid in alive(processes, 10):
        end(pid)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_selfplay_train_starts_a_cluster_of_its_own(
    cluster: str, tmp_path: Path, tiny: Path, beside_a_cluster: dict[str, str]
):
    client = connect(cluster)
    command = [sys.executable, "-m", "selfplay_ray", "train", "proposer-solver", *FLAGS, "--verbose"]
    done = subprocess.run(
        [*command, "--model-path", str(tiny), "--min-trainable", "0"],
        cwd=tmp_path,
        env=beside_a_cluster,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    check_run(tmp_path / "runs" / "run", tiny)
    assert client.list_jobs() == []  # it was not run on the other one
    lines = done.stdout.splitlines()
    assert lines[0] == "run runs/run"
    assert any(line.startswith("step 2/2  Proposer 0.00") for line in lines)
    assert any("Repeat with other numbers" in line for line in lines)  # --verbose: what was said
    assert lines[-1].startswith("Proposer ")  # the summary


def submit(client: JobSubmissionClient, entrypoint: str, deadline: float) -> str:
    """Submit, once the dashboard has found an agent to run jobs, which on a busy machine takes its time."""
    environment = {"working_dir": str(REPOSITORY), "excludes": [".git", ".venvs", "runs", "tests"]}
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=environment)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_ray_job_submit(cluster: str, tmp_path: Path, tiny: Path):
    client = connect(cluster)
    flags = [
        *FLAGS,
        "--model-path",
        str(tiny),
        "--min-trainable",
        "0",
        "--output-dir",
        str(tmp_path / "runs"),
    ]
    deadline = time.monotonic() + 200
    job = submit(client, f"{sys.executable} jobs/train_proposer_solver.py {' '.join(flags)}", deadline)
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.3)
    logs = client.get_job_logs(job)
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, logs
    assert client.get_job_info(job).driver_exit_code == 0
    assert "step 2/2" in logs
    check_run(tmp_path / "runs" / "run", tiny)


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster, once that answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return JobSubmissionClient(address)
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
