"""Programs that mean harm, and what they may come to. Each prints "got out" where it got further than it may."""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfplay_ray.sandbox import Limits, Status

SMALL = Limits(seconds=10.0, memory_bytes=96 * 2**20, output_bytes=20_000, processes=8, file_bytes=2**20)


@dataclass(frozen=True)
class Hostile:
    """``ends`` are the statuses it may end with, that which is expected first."""

    program: str
    ends: tuple[Status, ...]

    @property
    def limits(self) -> Limits:
        """Short for what is expected to use up its time."""
        return replace(SMALL, seconds=0.4) if self.ends[0] == "timeout" else SMALL


ENDLESS: dict[str, Hostile] = {
    "infinite loop": Hostile("while True: pass", ("timeout",)),
    "sleeps": Hostile("import time\nprint('now', flush=True)\ntime.sleep(10**6)", ("timeout",)),
    "ignores signals": Hostile(
        """
import signal
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
while True: pass
""",
        ("timeout",),
    ),
    "stops itself": Hostile("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", ("timeout",)),
    "closes its output": Hostile(
        "import os\nfor n in range(64):\n    try: os.close(n)\n    except OSError: pass\nwhile True: pass",
        ("timeout",),
    ),
    "reads stdin": Hostile("import sys\nsys.stdin.read()\nwhile True: pass", ("timeout",)),
    "matches an expression for years": Hostile("import re\nre.match('(a+)+b', 'a' * 40)", ("timeout",)),
    "a number too large": Hostile("x = 3\nwhile True: x = x * x", ("timeout", "memory")),
}

GREEDY: dict[str, Hostile] = {
    "eats memory": Hostile("kept = []\nwhile True: kept.append(bytearray(2**20))", ("memory",)),
    "eats memory at once": Hostile("kept = bytearray(2**33)", ("memory",)),
    "eats memory and carries on": Hostile(
        """
kept = []
while True:
    try:
        kept.append(bytearray(2**16))
    except MemoryError:
        pass
""",
        ("timeout", "memory"),
    ),
    "eats memory with others": Hostile(
        """
import os, time
for _ in range(6):
    if os.fork() == 0:
        break
kept = bytearray(b'x') * (40 * 2**20)
time.sleep(60)
""",
        ("memory",),
    ),
    "eats shared memory": Hostile(
        """
import mmap, os, time
kept = []
for _ in range(7):
    if os.fork() == 0:
        break
for _ in range(4):
    part = mmap.mmap(-1, 10 * 2**20)
    part.write(b'x' * (10 * 2**20))
    kept.append(part)
time.sleep(60)
""",
        ("memory",),
    ),
    "eats shared memory and looks away": Hostile(
        """
import mmap, os, time
for _ in range(4):
    if os.fork() == 0:
        break
part = mmap.mmap(-1, 64 * 2**20)
for start in range(0, len(part), 2**20):
    part[start : start + 2**20] = b'x' * 2**20
    part.madvise(mmap.MADV_DONTNEED)
time.sleep(2)
if part[0] == 120: print('got out', 'it is all there, and was resident in nobody')
""",
        ("memory",),
    ),
    "forks": Hostile("import os\nwhile True: os.fork()", ("error", "processes", "timeout")),
    "forks whatever happens": Hostile(
        """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
        ("timeout", "processes"),
    ),
    "forks into sessions": Hostile(
        """
import os, time
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork(): os._exit(0)
            time.sleep(100)
    except OSError:
        pass
""",
        ("timeout", "processes"),
    ),
    "starts threads": Hostile(
        """
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(1000,)).start()
    except (RuntimeError, MemoryError):
        time.sleep(0.01)
""",
        ("timeout", "memory"),
    ),
    "prints forever": Hostile("while True: print('x' * 1000)", ("output",)),
    "complains forever": Hostile("import sys\nwhile True: sys.stderr.write('x' * 1000)", ("output",)),
    "prints forever in another session": Hostile(
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: print('x' * 1000)\nwhile True: pass",
        ("output",),
    ),
    "fills the disk": Hostile(
        """
import os
for folder in ('.', '/tmp', '/var/tmp', '/dev/shm', '/', '/dev', '/run'):
    for n in range(20):
        try:
            with open(os.path.join(folder, f'{n}.big'), 'wb') as file:
                file.write(b'x' * 2**19)
        except OSError as error:
            break
    else:
        print('got out')
raise SystemExit(3)
""",
        ("error", "files"),
    ),
    "writes a large file": Hostile(
        "with open('big', 'wb') as file:\n    while True: file.write(b'x' * 2**16)", ("error", "files")
    ),
    "makes files": Hostile(
        "import os\nn = 0\nwhile True:\n    os.close(os.open(f'{n}', os.O_CREAT))\n    n += 1",
        ("files", "timeout", "error"),
    ),
    "makes folders in folders": Hostile(
        "import os\nwhile True:\n    os.mkdir('x')\n    os.chdir('x')", ("files", "timeout", "error")
    ),
    "recurses": Hostile("def f(): return f()\nf()", ("error", "timeout")),
    "recurses without a limit": Hostile(
        "import sys\nsys.setrecursionlimit(2**31 - 1)\ndef f(): return f()\nf()",
        ("error", "memory", "timeout"),
    ),
    "recurses in C": Hostile(
        """
import sys
sys.setrecursionlimit(2**31 - 1)
class A:
    def __getattr__(self, name): return getattr(self, name + 'x')
kept = []
for _ in range(10**6): kept = [kept]
repr(kept)
""",
        ("error", "memory", "timeout"),
    ),
}

REBELLIOUS: dict[str, Hostile] = {
    "outlives its parent": Hostile(
        """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for n in range(3): os.close(n)
        while True: time.sleep(1)
    os._exit(0)
""",
        ("ok",),
    ),
    "outlives its parent with its output": Hostile(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True: time.sleep(1)\nprint('done')",
        ("ok",),
    ),
    "leaves orphans when time is up": Hostile(
        # Four, so that the limit of processes is not what ends the first of them.
        "import os\nfor _ in range(2):\n    if os.fork() == 0: os.setsid()\nwhile True: pass",
        ("timeout",),
    ),
    "kills what watches it": Hostile(
        """
import os, signal, sys
if sys.platform == 'linux' and os.getpid() > 100: raise SystemExit('these are the processes of the machine')
for pid in (1, os.getppid()):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGABRT):
        try:
            os.kill(pid, number)
        except OSError:
            pass
while True: pass
""",
        ("timeout",),
    ),
    "kills everybody": Hostile(
        """
import os, signal, sys
if os.getpid() > 100: raise SystemExit('these are the processes of the machine')
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
while True: pass
""",
        ("timeout",),
    ),
    "starves what watches it": Hostile(
        """
import os, resource
if os.getpid() > 100: raise SystemExit('these are the processes of the machine')
for pid in (1, os.getppid()):
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU):
        try:
            resource.prlimit(pid, kind, (0, 0))
        except (OSError, AttributeError):
            pass
while True: pass
""",
        ("timeout", "killed"),
    ),
    "takes the files of what watches it": Hostile(
        """
import os, resource
if os.getpid() > 100: raise SystemExit('these are the processes of the machine')
for pid in (1, os.getppid()):
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))
    except (OSError, AttributeError):
        pass
""",
        ("ok", "killed"),
    ),
    "lifts its limits": Hostile(
        """
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
    soft, hard = resource.getrlimit(kind)
    for wanted in (resource.RLIM_INFINITY, hard + 1):
        try:
            resource.setrlimit(kind, (wanted, wanted))
            print('got out', kind)
        except (ValueError, OSError):
            pass
""",
        ("ok",),
    ),
    "writes into what watches it": Hostile(
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in (1, os.getppid()):
    if libc.ptrace(16, pid, 0, 0) == 0:
        print('got out', 'ptrace')
    for name in ('mem', 'environ', 'maps', 'fd/0', 'root/etc'):
        for mode in ('rb', 'r+b'):
            try:
                with open(f'/proc/{pid}/{name}', mode) as file:
                    if file.read(1): print('got out', name, mode)
            except (OSError, ValueError):
                pass
""",
        ("ok", "error"),
    ),
    "reports on itself": Hostile(
        """
import fcntl, json, os, sys
os.set_blocking(2, False)
report = json.dumps({'status': 'ok', 'exit_code': 0, 'seconds': 0.0})
sys.stderr.write(f'\\n{report}\\n\\n{"0" * 32}{report}\\n')
sys.stderr.flush()
while True:
    try:
        os.write(2, b'x')
    except BlockingIOError:
        break
    except OSError:
        break
os._exit(7)
""",
        ("error", "output"),
    ),
    "kills itself": Hostile("import os\nos.kill(os.getpid(), 9)", ("error",)),
}

ESCAPES: dict[str, Hostile] = {
    "makes namespaces": Hostile(
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for flag in (0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
    if libc.unshare(flag) == 0:
        print('got out', hex(flag))
for path in ('/proc/1/ns/net', '/proc/1/ns/mnt', '/proc/1/ns/pid', '/proc/1/ns/user'):
    try:
        if libc.setns(os.open(path, os.O_RDONLY), 0) == 0: print('got out', path)
    except OSError:
        pass
if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('got out', 'mount')
if libc.mount(None, b'/', None, 32 | 4096, None) == 0: print('got out', 'remount')
if libc.umount2(b'/proc', 2) == 0: print('got out', 'umount')
if libc.chroot(b'/tmp') == 0: print('got out', 'chroot')
""",
        ("ok",),
    ),
    "becomes root": Hostile(
        """
import os
for become in (os.setuid, os.seteuid, os.setgid, os.setegid):
    try:
        become(0)
        print('got out', become)
    except OSError:
        pass
if 0 in (os.getuid(), os.geteuid(), os.getgid()): print('got out', os.getuid(), os.getgid())
if os.getgroups() not in ([], [65534]): print('got out', os.getgroups())
""",
        ("ok",),
    ),
    "opens odd sockets": Hostile(
        """
import socket
for family in (2, 10, 16, 17, 38, 40, 44):
    for kind in (1, 2, 3):
        try:
            socket.socket(family, kind)
            print('got out', family, kind)
        except OSError:
            pass
""",
        ("ok",),
    ),
    "takes the turns of what watches it": Hostile(
        """
import os, resource
idle = os.SCHED_IDLE, os.sched_param(0)
for what, take in {
    'limits': lambda: resource.prlimit(1, resource.RLIMIT_STACK, (4096, 4096)),
    'scheduler': lambda: os.sched_setscheduler(1, *idle),
    'cores': lambda: os.sched_setaffinity(1, os.sched_getaffinity(0)),
    'priority': lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
    'priority of all': lambda: os.setpriority(os.PRIO_USER, 0, 19),
}.items():
    try:
        take()
        print('got out', what)
    except PermissionError:
        pass
os.sched_setscheduler(0, *idle)
os.sched_setaffinity(0, os.sched_getaffinity(0))
print('nice', os.nice(1))
""",
        ("ok",),
    ),
    "opens odd pairs of sockets": Hostile(
        """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for family in (2, 16, 30, 40):
    if libc.socketpair(family, 1, 0, (ctypes.c_int * 2)()) == 0 or ctypes.get_errno() != errno.EAFNOSUPPORT:
        print('got out', family)
""",
        ("ok",),
    ),
    "takes what all users share": Hostile(
        """
import ctypes, platform
number = {'x86_64': 206, 'aarch64': 0}[platform.machine()]
if ctypes.CDLL(None).syscall(number, 1, ctypes.byref(ctypes.c_ulong(0))) == 0: print('got out', 'io_setup')
""",
        ("ok",),
    ),
    "calls as another architecture": Hostile(
        """
import ctypes, mmap, platform
if platform.machine() != 'x86_64': raise SystemExit(1)
code = bytes.fromhex('b814000000cd80c3')  # mov eax, 20; int 0x80; ret: getpid by the 32-bit table
page = mmap.mmap(-1, 4096, prot=7)
page.write(code)
print('got out', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
""",
        ("error",),
    ),
    "calls by another table": Hostile(
        "import ctypes, platform\nif platform.machine() != 'x86_64': raise SystemExit(1)\n"
        "if ctypes.CDLL(None).syscall(0x40000000 + 39) > 0: print('got out')",
        ("error",),
    ),
    "eats memory in files": Hostile(
        """
import os, socket, time
kept = []
try:
    for n in range(100):
        kept.append(os.memfd_create(str(n)))
        os.write(kept[-1], b'x' * 2**20)
        print('got out')
except OSError as error:
    print(error)
while True: pass
""",
        ("timeout",),
    ),
    "eats shared memory of the system": Hostile(
        """
import ctypes
libc = ctypes.CDLL(None)
for key in range(64):
    if libc.shmget(0, 2**20, 0o1666) >= 0:
        print('got out')
while True: pass
""",
        ("timeout",),
    ),
}
