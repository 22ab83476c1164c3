"""Takes rights away from this process, for ever, before it loads a model.

In: what the model may need. Out: a line for each protection that this kernel does not give. Afterwards the process reads
only the interpreter, the system's libraries and the model's folder, writes no file, has no network, starts no program,
signals nobody but itself, and has bounded memory.

- Files: Landlock (Linux 5.13), which also keeps other processes' memory out of reach. RLIMIT_FSIZE stands beside it.
- Network, programs, signals: a seccomp filter; Landlock's scopes where the kernel has them.
- Memory: RLIMIT_DATA; RLIMIT_AS, with room for code and shared memory.
- Privileges: none new, and a root user's capabilities are dropped.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SIGKILL = 9
# Code, the stacks' guard pages and the batches' memory are address space too, but not the model's data.
ADDRESS_SPACE_BESIDE = 4 << 30


def die_with_parent(parent):
    """The kernel ends this process with the thread that started it, which lives as long as the worker."""
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def enter(readable, memory_max):
    """Drops what can be dropped; returns what this kernel refused, a line each."""
    refused = []

    def protect(what, step, *arguments):
        try:
            step(*arguments)
        except OSError as error:
            refused.append(f"{what}: {error.strerror or error}")

    protect("no new privileges", lambda: prctl(PR_SET_NO_NEW_PRIVS, 1))
    protect("memory limit", limit_memory, memory_max)
    protect("no core files", resource.setrlimit, resource.RLIMIT_CORE, (0, 0))
    protect("no file writes by limit", resource.setrlimit, resource.RLIMIT_FSIZE, (0, 0))
    protect("file rights (Landlock)", restrict_files, readable)
    protect("no capabilities", drop_capabilities)
    protect("no network, programs and signals (seccomp)", filter_system_calls)
    return refused


def prctl(option, value):
    if LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise last_error()


def last_error():
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def limit_memory(memory_max):
    for limit, bound in (resource.RLIMIT_DATA, memory_max), (resource.RLIMIT_AS, memory_max + ADDRESS_SPACE_BESIDE):
        hard = resource.getrlimit(limit)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(limit, (bound, bound))


def drop_capabilities():
    header = struct.pack("Ii", 0x20080522, 0)
    if LIBC.capset(ctypes.c_char_p(header), ctypes.c_char_p(bytes(24))) != 0:
        raise last_error()


# ---- Landlock: https://docs.kernel.org/userspace-api/landlock.html -----------------------------------------------------

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
# By the first ABI version that knows them: how many file rights there are, TCP rights, scopes.
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
TCP_FROM, SCOPES_FROM = 4, 6

# Outside the interpreter's own folders; none holds anything of a user.
SYSTEM = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/fs/cgroup",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
]


def restrict_files(readable):
    version = LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < 1:
        raise last_error()
    handled = (1 << FILE_RIGHTS[max(first for first in FILE_RIGHTS if first <= version)]) - 1
    attributes = struct.pack("QQQ", handled, 3, 3)
    size = 24 if version >= SCOPES_FROM else 16 if version >= TCP_FROM else 8
    ruleset = LIBC.syscall(CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(size), ctypes.c_uint(0))
    if ruleset < 0:
        raise last_error()
    try:
        for path in {*SYSTEM, *interpreter_folders(), *readable}:
            allow_reading(ruleset, path)
        if LIBC.syscall(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0)) != 0:
            raise last_error()
    finally:
        os.close(ruleset)


def interpreter_folders():
    """Where Python, its packages and the libraries loaded so far lie."""
    folders = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *sys.path}
    folders.update(os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    with open("/proc/self/maps") as maps:
        mapped = (line.split(maxsplit=5)[5:] for line in maps)
        folders.update(os.path.dirname(path[0].strip()) for path in mapped if path and ".so" in path[0])
    # Python in / or /usr would open all of it: there the lists above and `sys.path` name what is needed.
    return {folder for folder in folders if os.path.isabs(folder)} - {"/", "/usr", "/home", "/root"}


def allow_reading(ruleset, path):
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = READ_FILE | EXECUTE | READ_DIR if os.path.isdir(path) else READ_FILE
        if path == os.devnull:
            rights |= WRITE_FILE
        rule = struct.pack("=Qi", rights, place)
        added = LIBC.syscall(
            ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), ctypes.c_char_p(rule), ctypes.c_uint(0)
        )
        if added != 0:
            raise last_error()
    finally:
        os.close(place)


# ---- seccomp: classic BPF over `struct seccomp_data` (number, architecture, ..., 64-bit arguments from byte 16) ----------

ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
EPERM, EACCES, ENOSYS = 1, 13, 38
LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
CLONE_THREAD = 0x10000

# An architecture's mark, and the numbers of its system calls.
ARCHITECTURES = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "clone": 56, "prctl": 157, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "tkill": 200, "tgkill": 234,
            "ptrace": 101, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "execveat": 322, "bpf": 321,
            "process_vm_readv": 310, "process_vm_writev": 311, "keyctl": 250, "add_key": 248, "request_key": 249,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "socket": 198, "clone": 220, "prctl": 167, "execve": 221, "kill": 129, "tkill": 130, "tgkill": 131,
            "ptrace": 117, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "execveat": 281, "bpf": 280,
            "process_vm_readv": 270, "process_vm_writev": 271, "keyctl": 219, "add_key": 217, "request_key": 218,
        },
    ),
}
# The same numbers everywhere.
SHARED = {"pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438}
# The C library falls back to `clone`, whose flags a filter can see.
CLONE3 = 435


def filter_system_calls():
    machine = platform.machine()
    if machine not in ARCHITECTURES or sys.maxsize < 2**32:
        raise OSError(ENOSYS, f"no filter for {machine}")
    program = b"".join(filter_program(*ARCHITECTURES[machine], os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    head = ctypes.c_char_p(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)))
    if LIBC.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), head, ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise last_error()


def filter_program(architecture, numbers, own_pid):
    """Instructions of 8 bytes. Jumps skip as many instructions as they say."""

    def step(code, value, if_true=0, if_false=0):
        return struct.pack("HBBI", code, if_true, if_false, value)

    def refuse(number, error):
        return [step(EQUAL, number, 0, 1), step(RETURN, ERROR | error)]

    def to_itself_only(number):
        # The low half of the first argument is the process; a jump to the last instruction lets it through.
        return [step(EQUAL, number, 0, 4), step(LOAD, 16), step(EQUAL, own_pid, 1, 0), step(RETURN, ERROR | EPERM),
                step(RETURN, ALLOW)]

    yield from [step(LOAD, 4), step(EQUAL, architecture, 1, 0), step(RETURN, KILL), step(LOAD, 0)]
    # The x32 calls of x86-64 are numbered from here on, and no Python uses them.
    yield from [step(AT_LEAST, 0x40000000, 0, 1), step(RETURN, ERROR | ENOSYS)]
    yield from refuse(CLONE3, ENOSYS)
    # A thread is no new process.
    yield from [step(EQUAL, numbers["clone"], 0, 4), step(LOAD, 16), step(ANY_BIT, CLONE_THREAD, 1, 0),
                step(RETURN, ERROR | EPERM), step(RETURN, ALLOW)]
    for name in "kill", "tgkill":
        yield from to_itself_only(numbers[name])
    # It may not outlive the worker.
    yield from [step(EQUAL, numbers["prctl"], 0, 4), step(LOAD, 16), step(EQUAL, PR_SET_PDEATHSIG, 0, 1),
                step(RETURN, ERROR | EPERM), step(RETURN, ALLOW)]
    yield from refuse(numbers["socket"], EACCES)
    told_apart = {"clone", "kill", "prctl", "socket", "tgkill"}
    for name, number in {**numbers, **SHARED}.items():
        if name not in told_apart:
            yield from refuse(number, EPERM)
    yield step(RETURN, ALLOW)
