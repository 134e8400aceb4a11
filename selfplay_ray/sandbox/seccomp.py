"""A filter of system calls for Linux, as the kernel takes it: what no Python program of the kind run here needs.

A namespace hides what there is; the filter keeps a program from the parts of the kernel where one gets out of a
namespace, or where memory is had that no limit counts. Sockets are left of the kind that stays on the machine
(AF_UNIX), because some others, those of virtual machines (AF_VSOCK) for one, know no network namespaces.

The filter is classic BPF over ``struct seccomp_data`` {int nr; u32 arch; u64 ip; u64 args[6]}; see seccomp(2).
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator, Mapping

from selfplay_ray.errors import ConfigError

LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
AF_UNIX = 1
NEW_NAMESPACES = 0x7E020080
"""The flags of clone(2) that make namespaces: CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC and so on."""
X32 = 0x40000000
"""Numbers from here on are system calls of another table of the same x86-64."""

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
CALLS = {
    # looking into other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "perf_event_open": (298, 241), "process_madvise": (440, 440),
    # other namespaces and file systems
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # large and young parts of the kernel
    "bpf": (321, 280), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "vmsplice": (278, 75), "personality": (135, 92),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),
    # what all users of the machine share a fixed number of
    "io_setup": (206, 0),
    # the machine itself
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "acct": (163, 89), "syslog": (103, 116), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58),
}  # fmt: skip
"""Calls that are refused with EPERM, by their numbers on x86-64 and arm64."""
ONLY_ON_X86_64 = {"iopl": 172, "ioperm": 173, "modify_ldt": 154, "uselib": 134, "sysfs": 139, "_sysctl": 156}
SOCKET, SOCKETPAIR, CLONE, CLONE3 = (41, 198), (53, 199), (56, 220), (435, 435)
OF_A_PROCESS = {
    "prlimit64": (302, 261), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
}  # fmt: skip
"""Calls for the process whose number is their first argument, allowed for 0, the caller: in a user namespace the
supervisor is the same user as the program, which would take its files or its turns from it."""
SETPRIORITY = (141, 140)
"""The same; its first argument is 0 where the second is a process's number."""


def filter_program(machine: str | None = None) -> bytes:
    """The filter for ``machine`` (this one if None), as an array of ``struct sock_filter``.

    Raises:
        ConfigError: its system calls aren't in the table.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise ConfigError(
            f"there is no filter of system calls for {machine}; there is one for x86_64 and aarch64"
        )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _instructions(machine))


def _instructions(machine: str) -> Iterator[tuple[int, int, int, int]]:
    architecture, column = ARCHITECTURES[machine]
    yield LOAD, 0, 0, ARCHITECTURE
    yield JUMP_IF_EQUAL, 1, 0, architecture
    yield RETURN, 0, 0, KILL  # a 32-bit call, with other numbers
    yield LOAD, 0, 0, NUMBER
    yield JUMP_IF_AT_LEAST, 0, 1, X32
    yield RETURN, 0, 0, KILL
    refused = [numbers[column] for numbers in CALLS.values()]
    for number in [*refused, *(ONLY_ON_X86_64.values() if machine == "x86_64" else ())]:
        yield from _refuse(number, EPERM)
    yield from _refuse(CLONE3[column], ENOSYS)  # its flags are out of sight; libraries then use clone
    yield JUMP_IF_EQUAL, 0, 4, CLONE[column]
    yield LOAD, 0, 0, FIRST_ARGUMENT
    yield JUMP_IF_ANY_BIT, 0, 1, NEW_NAMESPACES
    yield RETURN, 0, 0, ERROR | EPERM
    yield RETURN, 0, 0, ALLOW
    for numbers in (SOCKET, SOCKETPAIR):
        yield from _allow_for(numbers[column], {FIRST_ARGUMENT: AF_UNIX}, EAFNOSUPPORT)
    for numbers in OF_A_PROCESS.values():
        yield from _allow_for(numbers[column], {FIRST_ARGUMENT: 0}, EPERM)
    yield from _allow_for(SETPRIORITY[column], {FIRST_ARGUMENT: 0, SECOND_ARGUMENT: 0}, EPERM)
    yield RETURN, 0, 0, ALLOW


def _allow_for(number: int, arguments: Mapping[int, int], error: int) -> Iterator[tuple[int, int, int, int]]:
    """Refuse the call unless all of ``arguments``, of 32 bits each, are as given."""
    yield JUMP_IF_EQUAL, 0, 3 * len(arguments) + 1, number
    for argument, value in arguments.items():
        yield LOAD, 0, 0, argument
        yield JUMP_IF_EQUAL, 1, 0, value
        yield RETURN, 0, 0, ERROR | error
    yield RETURN, 0, 0, ALLOW


def _refuse(number: int, error: int) -> Iterator[tuple[int, int, int, int]]:
    yield JUMP_IF_EQUAL, 0, 1, number
    yield RETURN, 0, 0, ERROR | error
