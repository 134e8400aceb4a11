"""What hostile programs come to: each is contained, ended by the limit it went for, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from hostile import ENDLESS, ESCAPES, GREEDY, REBELLIOUS, SMALL, Hostile
from sandboxes_here import found

from selfplay_ray.sandbox import Limits, Sandbox

ALL = {**ENDLESS, **GREEDY, **REBELLIOUS}
pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def check(sandbox: Sandbox, hostile: Hostile) -> None:
    outcome = await sandbox.run(hostile.program, "given", hostile.limits)
    assert "got out" not in outcome.stdout, outcome
    ends = (*hostile.ends, "error") if sandbox.name == "sandbox-exec" else hostile.ends  # where nothing forks
    assert outcome.status in ends, outcome
    assert len(outcome.stdout.encode()) <= SMALL.output_bytes
    assert len(outcome.stderr.encode()) <= SMALL.output_bytes


@pytest.mark.parametrize("name", ALL)
async def test_is_contained(sandbox: Sandbox, name: str):
    await check(sandbox, ALL[name])


@pytest.mark.parametrize("name", ESCAPES)
async def test_stays_in_bubblewrap(bubblewrap: Sandbox, name: str):
    await check(bubblewrap, ESCAPES[name])


async def test_reads_no_file_of_ours(sandbox: Sandbox, secret: str, secret_files: list[Path]):
    paths = [
        *map(str, secret_files),
        __file__,
        "/etc/shadow",
        "/etc/passwd",
        "/etc/hostname",
        "/root/.bashrc",
    ]
    outcome = await sandbox.run(
        f"""
import os
for path in {paths}:
    try:
        print('read', path, open(path).read())
    except OSError as error:
        print(type(error).__name__)
for root, _, files in os.walk({os.path.expanduser("~")!r}):
    if '/lib/' not in root and not root.endswith('/bin'):
        print('found', files)
print(os.listdir({tempfile.gettempdir()!r}))
"""
    )
    assert secret not in outcome.stdout
    assert "read" not in outcome.stdout
    assert "root:" not in outcome.stdout
    assert outcome.stdout.count("Error") == len(paths), outcome


async def test_writes_nowhere_but_in_its_folder(sandbox: Sandbox, secret: str, secret_files: list[Path]):
    stdlib = os.path.dirname(os.__file__)
    own = Path(tempfile.gettempdir())  # which some have an own one of
    paths = [
        *(str(file) for file in secret_files if file.parent != own),
        *(
            f"{folder}/{secret}"
            for folder in ("/", "/etc", "/usr/lib", "/dev", "/dev/shm", "/proc", "/root", stdlib)
        ),
        *(f"{stdlib}/os.py", sys.executable, os.path.realpath(sys.executable)),
        *(
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/hostname",
            "/proc/sysrq-trigger",
            "/proc/1/oom_score_adj",
        ),
    ]
    outcome = await sandbox.run(
        f"""
import os
for path in {paths}:
    try:
        with open(path, 'a') as file:
            if not path.startswith('/proc'): file.write('x')  # there to open it is enough: it is the machine's own
        print('wrote', path)
    except OSError as error:
        print(type(error).__name__)
os.chdir(os.environ['HOME'])
open('here', 'w').write('fine')
print(open('here').read())
"""
    )
    assert "wrote" not in outcome.stdout
    assert outcome.stdout.splitlines()[-1] == "fine"
    assert [file.read_text() for file in secret_files] == [secret] * len(secret_files)


async def test_finds_nothing_of_our_environment(
    sandbox: Sandbox, secret: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", secret)
    outcome = await sandbox.run(
        """
import glob, os
print(sorted(os.environ))
for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
    try:
        print(open(path).read())
    except OSError:
        pass
"""
    )
    assert secret not in outcome.stdout
    assert outcome.stdout.splitlines()[0] == str(
        sorted(["HOME", "LANG", "MALLOC_ARENA_MAX", "PATH", "TMPDIR"])
    )
    assert "pytest" not in outcome.stdout.replace("\0", " ")


@pytest.fixture
def listeners(tmp_path: Path, secret: str):
    """Sockets that wait for somebody: on loopback, at a path, and, on Linux, at a name without a path."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    tcp, local, abstract = socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    tcp.bind(("127.0.0.1", 0))
    local.bind(str(folder / "socket"))
    waiting = [tcp, local]
    if sys.platform == "linux":
        abstract.bind(f"\0{secret}")
        waiting.append(abstract)
    for listener in waiting:
        listener.listen()
        listener.setblocking(False)
    yield waiting
    for listener in (tcp, local, abstract):
        listener.close()
    shutil.rmtree(folder)


async def test_reaches_nobody(sandbox: Sandbox, listeners: list[socket.socket]):
    names = [listener.getsockname() for listener in listeners]
    outcome = await sandbox.run(
        f"""
import socket
for name in {names} + [('1.1.1.1', 53), ('8.8.8.8', 443), ('10.0.2.2', 80), ('169.254.169.254', 80)]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            talk = socket.socket(socket.AF_INET if isinstance(name, tuple) else socket.AF_UNIX, kind)
            talk.settimeout(0.2)
            talk.connect(name)
            talk.send(b'hello')
            print('reached', name)
        except OSError as error:
            print(type(error).__name__)
try:
    print('reached', socket.getaddrinfo('pypi.org', 443))
except OSError as error:
    print(type(error).__name__)
""",
        limits=Limits(seconds=10),
    )
    assert outcome.status == "ok", outcome
    assert "reached" not in outcome.stdout
    for listener in listeners:
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_sees_no_other_process(sandbox: Sandbox):
    program = "import os\nprint([int(name) for name in os.listdir('/proc') if name.isdigit()])"
    if sandbox.name == "sandbox-exec":
        pytest.skip("there is no /proc")
    first, second = await asyncio.gather(sandbox.run(program), sandbox.run(program))
    assert first.stdout == second.stdout == "[1, 2]\n"


async def test_finds_nothing_of_another_run(sandbox: Sandbox, secret: str):
    """One writes and waits for the other, which looks where the first writes."""
    writer = f"import time\nopen('kept', 'w').write({secret!r})\nprint('written', flush=True)\ntime.sleep(60)"
    reader = """
import glob, os, time
time.sleep(0.5)
for folder in ('.', os.environ['HOME'], '/tmp', '/dev/shm', '/var/tmp', *glob.glob('/proc/*/cwd')):
    for root, _, files in os.walk(folder):
        for name in files:
            if 'program.py' != name: print(root, name, open(os.path.join(root, name)).read())
"""
    wrote, read = await asyncio.gather(
        sandbox.run(writer, limits=Limits(seconds=1)), sandbox.run(reader, limits=Limits(seconds=10))
    )
    assert (wrote.status, wrote.stdout) == ("timeout", "written\n")
    assert (read.status, read.stdout) == ("ok", "")


async def test_has_no_privileges(bubblewrap: Sandbox):
    outcome = await bubblewrap.run("print(open('/proc/self/status').read())")
    said = dict(line.split(":\t", 1) for line in outcome.stdout.splitlines() if ":\t" in line)
    assert {said[name] for name in ("CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
    assert "0" not in said["Uid"].split()


async def test_is_the_first_to_go_where_memory_runs_out(bubblewrap: Sandbox):
    outcome = await bubblewrap.run(
        "for who in (1, 'self'): print(open(f'/proc/{who}/oom_score_adj').read().strip())"
    )
    assert outcome.stdout.split() == ["1000", "1000"]


async def test_not_even_a_program_of_the_machine_gets_its_core_dump(bubblewrap: Sandbox):
    """At a limit of 0 a piped core_pattern is followed all the same; see core(5) and the kernel's coredump.c."""
    outcome = await bubblewrap.run("import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))")
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert outcome.stdout == ("(0, 0)\n" if hard == 0 else "(1, 1)\n")


async def test_inherits_no_descriptor(bubblewrap: Sandbox):
    outcome = await bubblewrap.run("import os\nprint(sorted(map(int, os.listdir('/proc/self/fd'))))")
    assert outcome.stdout == "[0, 1, 2, 3]\n"  # the last is the folder that is being listed


async def test_as_root_the_kernel_counts_its_processes():
    """Not those of a namespace of users, whose root would be ours: for that the kernel makes an exception."""
    sandbox = found("bubblewrap")
    outcome = await sandbox.run(
        """
import os, time
for n in range(100):
    try:
        if os.fork() == 0: time.sleep(100)
    except BlockingIOError:
        print(n)
        break
""",
        limits=Limits(processes=50),
    )
    assert outcome.status == "ok", outcome
    assert int(outcome.stdout) == 49  # and itself
