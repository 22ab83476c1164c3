"""Runs a command beside a server of its own, made for this run and gone after it: what `with-kafka` and `with-nats` share.

The exit code is the command's (128 + N when signal N ended it). However this ends, the server is killed and its directory
removed; if this very process is killed, the kernel kills the server with it.
"""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[2]
READY_S_MAX = 90
PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Server:
    """A script in this folder: `script DIR PORT SETTING...`."""

    script: str
    log: str
    ready_line: bytes
    ports: int
    # The further settings of the script, from all ports but the first.
    port_settings: Callable[[list[int]], list[str]]
    # What stands for the address in the command, and the address on a port.
    word: str
    address: Callable[[int], str]


class Stopped(Exception):
    """A stop signal arrived before the command was started."""


def run(server, usage, arguments):
    """The exit code of the command in `arguments`."""
    settings, command = parse(usage, arguments)
    command_process = None
    signals_seen = []

    def on_signal(number, _frame):
        signals_seen.append(number)
        if command_process is None:
            raise Stopped(number)
        if len(signals_seen) >= 3:
            command_process.kill()
        elif not (number == signal.SIGINT and in_foreground()):
            # Ctrl-C reaches the whole foreground group, the command included: once is enough.
            command_process.send_signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)

    (ROOT / "target").mkdir(exist_ok=True)
    directory = pathlib.Path(tempfile.mkdtemp(prefix=f"with-{server.script}.", dir=ROOT / "target"))
    process = None
    try:
        port, *others = free_ports(server.ports)
        process = start(server, directory, port, [*server.port_settings(others), *settings])
        wait_ready(server, process, directory / server.log, port)
        address = server.address(port)
        command = [argument.replace(f"{{{server.word}}}", address) for argument in command]
        try:
            command_process = subprocess.Popen(command, env={**os.environ, server.word.upper(): address})
        except OSError as error:
            say(server, f"cannot run {command[0]}: {error.strerror}")
            return 127
        code = command_process.wait()
        return code if code >= 0 else 128 - code
    except Stopped as stopped:
        return 128 + stopped.args[0]
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if process is not None:
            # One that ended before it was ready is buried already.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def parse(usage, arguments):
    settings = []
    while len(arguments) >= 2 and arguments[0] == "--set":
        settings.append(arguments[1])
        arguments = arguments[2:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage.strip(), file=sys.stderr)
        sys.exit(2)
    return settings, arguments


def free_ports(count):
    """Held open together, so that they differ; another program may still take one before the server does."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


def start(server, directory, port, settings):
    # Its own session: Ctrl-C in a terminal must reach the command, which drains, and not the server under it.
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        [ROOT / "tests/servers" / server.script, directory, str(port), *settings],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def wait_ready(server, process, log, port):
    start = time.monotonic()
    while time.monotonic() - start < READY_S_MAX:
        if process.poll() is not None:
            fail(server, log, f"the server ended with {process.returncode} before it was ready")
        if log.exists() and server.ready_line in log.read_bytes() and accepts(port):
            return
        time.sleep(0.05)
    fail(server, log, f"the server was not ready after {READY_S_MAX} s")


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def fail(server, log, why):
    if log.exists():
        sys.stderr.writelines(log.read_text(errors="replace").splitlines(keepends=True)[-30:])
    say(server, why)
    sys.exit(1)


def in_foreground():
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def say(server, text):
    print(f"with-{server.script}: {text}", file=sys.stderr, flush=True)
