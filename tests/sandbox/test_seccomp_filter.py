"""The filter, run on calls by an interpreter of its instructions."""

from __future__ import annotations

import struct

import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox.seccomp import (
    ARCHITECTURES,
    CALLS,
    CLONE,
    CLONE3,
    OF_A_PROCESS,
    SETPRIORITY,
    SOCKET,
    SOCKETPAIR,
    filter_program,
)

ALLOWED, KILLED, EPERM, ENOSYS, EAFNOSUPPORT = 0x7FFF0000, 0x80000000, 0x50001, 0x50026, 0x50061
NAMES = list(ARCHITECTURES)


def verdict(
    machine: str, number: int, argument: int = 0, second: int = 0, *, architecture: int | None = None
) -> int:
    """Classic BPF over struct seccomp_data, as in the kernel: loads, jumps, returns."""
    architecture = ARCHITECTURES[machine][0] if architecture is None else architecture
    data = struct.pack("<iIQ6Q", number, architecture, 0, argument, second, 0, 0, 0, 0)
    code = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, operand = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif operation == 0x06:
            return operand
        else:
            true = {
                0x15: accumulator == operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }
            position += if_true if true[operation] else if_false


@pytest.mark.parametrize("machine", NAMES)
def test_verdicts(machine: str):
    column = NAMES.index(machine)
    for numbers in CALLS.values():
        assert verdict(machine, numbers[column]) == EPERM
    read, execve = ((0, 59), (63, 221))[column]
    assert verdict(machine, read) == verdict(machine, execve) == ALLOWED
    assert verdict(machine, read, architecture=0x40000003) == KILLED  # i386
    assert verdict(machine, 0x40000000 + read) == KILLED  # x32
    assert verdict(machine, CLONE3[column]) == ENOSYS
    assert verdict(machine, CLONE[column], 0x01200011) == ALLOWED  # what fork asks for
    assert verdict(machine, CLONE[column], 0x003D0F00) == ALLOWED  # what a thread asks for
    assert verdict(machine, CLONE[column], 0x10000011) == EPERM  # with a new namespace of users
    for numbers in (SOCKET, SOCKETPAIR):
        assert verdict(machine, numbers[column], 1) == ALLOWED  # AF_UNIX
        for family in (0, 2, 3, 10, 16, 17, 40):
            assert verdict(machine, numbers[column], family) == EAFNOSUPPORT
    for numbers in OF_A_PROCESS.values():
        assert verdict(machine, numbers[column], 0) == ALLOWED  # oneself
        assert verdict(machine, numbers[column], 1) == EPERM
    assert verdict(machine, SETPRIORITY[column], 0, 0) == ALLOWED
    for arguments in ((0, 1), (1, 0), (2, 0)):  # another process, a group, a user
        assert verdict(machine, SETPRIORITY[column], *arguments) == EPERM


def test_no_filter_no_sandbox():
    with pytest.raises(ConfigError, match="no filter of system calls for riscv64"):
        filter_program("riscv64")
