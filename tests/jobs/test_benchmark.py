from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.errors import SelfPlayError
from selfplay_ray.jobs import benchmark


def adding(repeats: int) -> BenchmarkResult:
    return BenchmarkResult("adding", 2.0, 4.0, 2.0, "sums/s", 0.1, {"repeats": repeats, "how": "by hand"})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adding_benchmark", SimpleNamespace(run=adding))
    monkeypatch.setattr(benchmark, "BENCHMARKS", {"adding": "adding_benchmark"})


@pytest.fixture
def in_process(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_run_apart", lambda name, repeats: adding(repeats))


@pytest.mark.usefixtures("registered")
def test_the_process_of_one_benchmark_leaves_its_result_in_the_file(tmp_path: Path):
    file = tmp_path / "result.json"
    assert benchmark.main(["adding", "--repeats", "5", "--result-file", str(file)]) == 0
    assert msgspec.json.decode(file.read_bytes(), type=BenchmarkResult) == adding(5)


@pytest.mark.usefixtures("in_process")
def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]):
    assert benchmark.main(["adding", "adding", "--json", "--repeats", "2"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == second
    assert list(first) == ["name", "ratio", "value", "baseline", "unit", "spread", "detail"]
    assert first["detail"]["repeats"] == 2


@pytest.mark.usefixtures("in_process")
def test_without_names_all_run_into_a_table(capsys: pytest.CaptureFixture[str]):
    assert benchmark.main([]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "adding" in line)
    assert all(cell in row for cell in ("2.00×", "sums/s", "10%"))


@pytest.mark.usefixtures("registered")
def test_a_benchmark_that_fails_in_its_process_is_named(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SelfPlayError, match="benchmark adding failed with exit code 2"):
        benchmark.main(["adding"])  # the new process has no such benchmark
    out, err = capfd.readouterr()
    assert out == ""
    assert "unknown benchmark 'adding'" in err
