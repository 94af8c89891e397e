"""The least rights that Linux gives a process without root, for one that runs code that is known to be unsafe.

llama.cpp's RPC trusts its client: who speaks to a shard can make it run anything. So it can do nothing but compute:

    no_new_privs   no program with set-uid bits gives it rights
    limits         of its own data, of open files, no core dump
    landlock       no file but its cache, no TCP but its one port, no signal to others (Linux 5.13, 6.7, 6.12)
    seccomp        no program, no connection to anywhere, no look into other processes, no other kernel interfaces

Each holds for what the calling thread starts later, so this is called while there is only one. What a system lacks is
left out, and told. Numbers are those of the kernel's own headers, which are the same for ever.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# Landlock has the same numbers on all machines.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH, _RULE_PORT = 1, 2
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPES = 3  # abstract sockets of others, signals to others
#: Rights on files that each version of landlock knows, as bits; an unknown bit is an error.
_FILE_RIGHTS = {1: 2**13 - 1, 2: 2**14 - 1, 3: 2**15 - 1, 4: 2**15 - 1}
_FILE_RIGHTS_NOW = 2**16 - 1  # from version 5 on
_READ = 2**2 | 2**3  # a file, a folder
_CACHE = _READ | 2**1 | 2**8 | 2**14  # ... write, make and cut files

#: System calls by architecture: what none of this needs, and what would lead out.
_FORBIDDEN = {
    "execve": (59, 221), "execveat": (322, 281), "connect": (42, 203), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kill": (62, 129),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "mount": (165, 40),
    "unshare": (272, 97), "setns": (308, 268), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "open_by_handle_at": (304, 265), "init_module": (175, 105), "finit_module": (313, 273), "chroot": (161, 51),
}  # fmt: skip
#: Those that are needed, with what an argument of theirs must be: TCP sockets only, and nothing sent to an address.
_ONLY = (((41, 198), 0, 2), ((41, 198), 1, 1), ((44, 206), 4, 0))  # socket, socket, sendto
#: AUDIT_ARCH of linux/audit.h, and the place in the table above.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32_BIT = 0x40000000  # another set of numbers for the same calls on x86_64

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # of linux/bpf_common.h
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


def confine(*, cache: Path | None, port: int, data_bytes: int) -> list[str]:
    """Give up what can be given up; what of it this system has, for the log.

    Args:
        cache: The only folder it may read and write; None: none at all.
        port: The only TCP port it may listen at.
        data_bytes: Memory of its own that it may have in all; 0: no limit.
    """
    assert _num_threads() == 1, "what runs already would keep its rights"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    if data_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
    held = ["limits"]
    if sys.platform != "linux":
        return held
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return held
    held.append("no_new_privs")
    if version := _landlock(libc, cache, port):
        held.append(f"landlock {version}")
    if _seccomp(libc):
        held.append("seccomp")
    return held


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1


def _landlock(libc: ctypes.CDLL, cache: Path | None, port: int) -> int:
    """The version that holds now; 0: none."""
    version = int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))
    if version < 1:
        return 0
    files = _FILE_RIGHTS.get(version, _FILE_RIGHTS_NOW)
    rights = [files]
    if version >= 4:
        rights.append(_BIND_TCP | _CONNECT_TCP)
    if version >= 6:
        rights.append(_SCOPES)
    attributes = struct.pack(f"={len(rights)}Q", *rights)
    rules = int(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    if rules < 0:
        return 0
    try:
        if cache is not None:
            folder = os.open(cache, os.O_PATH | os.O_CLOEXEC)
            try:
                _add_rule(libc, rules, _RULE_PATH, struct.pack("=Qi", _CACHE & files, folder))
            finally:
                os.close(folder)
        if version >= 4:
            _add_rule(libc, rules, _RULE_PORT, struct.pack("=QQ", _BIND_TCP, port))
        return version if libc.syscall(_RESTRICT_SELF, rules, 0) == 0 else 0
    finally:
        os.close(rules)


def _add_rule(libc: ctypes.CDLL, rules: int, kind: int, rule: bytes) -> None:
    if libc.syscall(_ADD_RULE, rules, kind, rule, 0) != 0:
        raise OSError(ctypes.get_errno(), "landlock refuses a rule")


def _seccomp(libc: ctypes.CDLL) -> bool:
    if platform.machine() not in _ARCHITECTURES:
        return False
    program = filter_program(*_ARCHITECTURES[platform.machine()])
    code = ctypes.create_string_buffer(program)
    # struct sock_fprog: number of instructions, pointer to them.
    header = ctypes.create_string_buffer(struct.pack("@HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header), 0, 0) == 0)


def filter_program(architecture: int, column: int) -> bytes:
    """Instructions of 8 bytes for the kernel's filter: refuse what is forbidden, allow the rest.

    Args:
        architecture: Calls of any other end the process, for their numbers mean something else.
        column: Of the table of numbers.
    """
    number, own_architecture = 0, 4  # offsets in struct seccomp_data
    program = [
        _Step(_LOAD, own_architecture),
        _Step(_EQUAL, architecture, otherwise="kill"),
        _Step(_LOAD, number),
        _Step(_AT_LEAST, _X32_BIT, then="refuse"),
        *(_Step(_EQUAL, numbers[column], then="refuse") for numbers in _FORBIDDEN.values()),
    ]
    for numbers, argument, value in _ONLY:
        low, high = (16 + 8 * argument + half for half in (0, 4))  # both are little-endian
        program += [
            _Step(_LOAD, number),
            _Step(_EQUAL, numbers[column], skips=4),
            _Step(_LOAD, low),
            _Step(_EQUAL, value, otherwise="refuse"),
            _Step(_LOAD, high),
            _Step(_EQUAL, 0, otherwise="refuse"),
        ]
    ends = {"allow": _ALLOW, "refuse": _REFUSE, "kill": _KILL}
    at = {name: len(program) + place for place, name in enumerate(ends)}

    def encoded(place: int, step: _Step) -> bytes:
        then = at[step.then] - place - 1 if step.then else 0
        otherwise = at[step.otherwise] - place - 1 if step.otherwise else step.skips
        return struct.pack("=HBBI", step.code, then, otherwise, step.value)

    steps = [*program, *(_Step(_RETURN, verdict) for verdict in ends.values())]
    return b"".join(encoded(place, step) for place, step in enumerate(steps))


@dataclass(frozen=True, slots=True)
class _Step:
    """An instruction; of a comparison, the ends that it leads to. Without one it goes on."""

    code: int
    value: int
    then: str = ""
    otherwise: str = ""
    skips: int = 0  # instructions, where it does not hold
