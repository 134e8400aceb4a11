"""What honest programs get: the right answer, what they printed, how they ended."""

from __future__ import annotations

import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox import Limits, Sandbox

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_right_answers(sandbox: Sandbox):
    program = """
import heapq, itertools, json, math, re, sys, collections, functools, decimal, datetime, random, hashlib
def squares():
    for n in itertools.count(): yield n * n
heap = [5, 1, 4]
heapq.heapify(heap)
print(list(itertools.islice(squares(), 5)), heapq.heappop(heap), math.comb(5, 2))
print(json.dumps({'é': 'ñ'}, ensure_ascii=False), '日本語', '🙂', '\\u00df'.upper())
print(re.sub('a+', 'b', 'caat'), decimal.Decimal('0.1') * 3, hashlib.sha256(b'').hexdigest()[:8])
name, *numbers = sys.stdin.read().split()
print(f'{name}: {sum(map(int, numbers))}')
with open('notes.txt', 'w') as file: file.write('kept')
print(open('notes.txt').read(), bytearray(b'x'))
"""
    outcome = await sandbox.run(program, "Žofie 1 2 3\n")
    assert outcome.stderr == ""
    assert outcome.stdout.splitlines() == [
        "[0, 1, 4, 9, 16] 1 10",
        '{"é": "ñ"} 日本語 🙂 SS',
        "cbt 0.3 e3b0c442",
        "Žofie: 6",
        "kept bytearray(b'x')",
    ]
    assert (outcome.status, outcome.exit_code, outcome.ok) == ("ok", 0, True)
    assert 0 < outcome.seconds < Limits().seconds


async def test_a_program_that_fails_says_how(sandbox: Sandbox):
    outcome = await sandbox.run("print('before')\n1 / 0")
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("error", 1, "before\n")
    assert outcome.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert 'program.py", line 2, in <module>' in outcome.stderr


@pytest.mark.parametrize(
    ("program", "code"), [("raise SystemExit(3)", 3), ("def f(:", 1), ("import os\nos.abort()", -6)]
)
async def test_exit_codes(sandbox: Sandbox, program: str, code: int):
    outcome = await sandbox.run(program)
    assert (outcome.status, outcome.exit_code) == ("error", code)


async def test_an_empty_program(sandbox: Sandbox):
    outcome = await sandbox.run("")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "", "")


async def test_stdin_that_nobody_reads(sandbox: Sandbox):
    outcome = await sandbox.run("print('done')", "x" * 2**20)
    assert (outcome.status, outcome.stdout) == ("ok", "done\n")


async def test_much_is_read_and_printed(sandbox: Sandbox):
    program = "import sys\ndata = sys.stdin.read()\nprint(len(data))\nsys.stdout.write(data[:60000])"
    outcome = await sandbox.run(program, "é" * 200_000, Limits(output_bytes=200_000))
    assert (outcome.status, outcome.stdout) == ("ok", "200000\n" + "é" * 60_000)


async def test_text_that_is_none(sandbox: Sandbox):
    outcome = await sandbox.run(
        "import sys\nsys.stdout.buffer.write(b'a\\xff\\n')\nprint(ascii('\udc80'))", "\udc80"
    )
    assert outcome.stdout.splitlines()[0] == "a\ufffd"


async def test_processes_and_threads_within_the_limit(sandbox: Sandbox):
    if sandbox.name == "sandbox-exec":
        pytest.skip("it lets nothing fork")
    program = """
import os, subprocess, sys, threading
threads = [threading.Thread(target=print, args=(n,)) for n in range(3)]
for thread in threads: thread.start(); thread.join()
if os.fork() == 0: os._exit(5)
print(os.waitstatus_to_exitcode(os.wait()[1]))
print(subprocess.run([sys.executable, '-c', 'print(7)'], capture_output=True, text=True).stdout)
"""
    outcome = await sandbox.run(program)
    assert (outcome.status, outcome.stdout.split()) == ("ok", ["0", "1", "2", "5", "7"]), outcome


async def test_only_the_standard_library_is_there(sandbox: Sandbox):
    program = """
for name in ('pip', 'pytest', 'selfplay_ray', 'numpy'):
    try:
        __import__(name)
        print(name)
    except ImportError:
        pass
"""
    outcome = await sandbox.run(program)
    assert (outcome.status, outcome.stdout) == ("ok", "")


@pytest.mark.parametrize(
    "limits", [{"seconds": 0}, {"memory_bytes": -1}, {"output_bytes": 0}, {"seconds": float("inf")}]
)
def test_limits_are_finite_and_positive(limits: dict[str, float]):
    with pytest.raises(ConfigError, match="must be finite and above 0"):
        Limits(**limits)  # type: ignore[arg-type]
