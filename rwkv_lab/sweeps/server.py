"""A process that has torch loaded and forks one job after the other, each a process of its own with nothing leaked in.

    python -m rwkv_lab.cli.job_server FD       # FD: the socket it is asked through; ends with the process at its end

The server touches no device and starts no thread, so that a forked job begins as a fresh process does, without the
seconds of processor time that importing takes. Requests and answers are lines of JSON.
"""

import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rwkv_lab.config import registry
from rwkv_lab.util.paths import IMPORT_ROOT
from rwkv_lab.util.signals import StopSignals
from rwkv_lab.util.subprocesses import Ended, end_with_parent, pass_on

HEADER = 8  # bytes that hold the length of a request


class ServerGone(Exception):
    """The server has ended without an answer."""


class ForkServer:
    """A server that this process started and asks; it ends with this process."""

    def __init__(self, environment: Mapping[str, str]):
        """Start a server in ``environment``, which libraries read when they are loaded."""
        self._socket, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, (str(IMPORT_ROOT), environment.get("PYTHONPATH"))))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rwkv_lab.cli.job_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # numpy's BLAS would start threads when it is loaded, and a process forked beside threads is not safe.
                env={**environment, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
                preexec_fn=end_with_parent,
            )
        self._answers = self._socket.makefile("r")

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def run(
        self, config: Mapping[str, Any], overrides: Sequence[str], environment: Mapping[str, str], quiet: bool
    ) -> Ended:
        """Run the job of a composed ``config`` in a forked process and wait for it, as ``run_child`` does.

        ``overrides`` are what it was composed from. Raises ServerGone if there is no server to fork it.
        """
        request = {"config": dict(config), "overrides": list(overrides), "environment": dict(environment)}
        request["folder"] = os.getcwd()
        read, write = os.pipe()
        with open(read, "rb") as errors, open(write, "wb") as end, open(os.devnull, "wb") as nowhere:
            try:
                _send(self._socket, request, [nowhere.fileno() if quiet else sys.stdout.fileno(), end.fileno()])
                pid = self._answer()["pid"]
            except OSError as error:
                raise ServerGone from error
            end.close()
            last: deque[str] = deque(maxlen=1)
            reader = threading.Thread(target=pass_on, args=(errors, last), daemon=True)
            reader.start()

            def terminate() -> None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

            with StopSignals(terminate, terminate) as stop:
                try:
                    code = self._answer()["code"]
                except ServerGone:
                    terminate()
                    code = -signal.SIGTERM
            reader.join(timeout=1)
        return Ended(code, stop.requested, last[0] if last else "")

    def _answer(self) -> dict[str, int]:
        line = self._answers.readline()
        if not line:
            raise ServerGone
        answer: dict[str, int] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the server."""
        self._answers.close()
        self._socket.close()
        self._process.wait()


@functools.cache
def server(threads: str | None) -> ForkServer:
    """Return this process's server for jobs of OMP_NUM_THREADS=``threads``, which torch reads when it is loaded."""
    return ForkServer({**os.environ, **({"OMP_NUM_THREADS": threads} if threads else {})})


def _send(connection: socket.socket, request: Mapping[str, Any], files: list[int]) -> None:
    content = json.dumps(request).encode()
    socket.send_fds(connection, [len(content).to_bytes(HEADER)], files)
    connection.sendall(content)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return the next request and its standard output and error; None if whoever asked is gone."""
    header, files, _, _ = socket.recv_fds(connection, HEADER, 2)
    if len(header) < HEADER:
        return None
    missing, parts = int.from_bytes(header), []
    while missing:
        part = connection.recv(missing)
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
    return json.loads(b"".join(parts)), files


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each request: return the request in that process, and None in the server at its end."""
    parent = os.getpid()
    # Ctrl-C in the terminal is for whoever asks, who passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (received := _receive(connection)) is not None:
        request, files = received
        for name in getattr(registry.get("data", request["config"]["data"]["name"]), "imports", ()):
            with suppress(ImportError):
                importlib.import_module(name)
        pid = os.fork()
        if pid == 0:
            _become(request, files, parent)
            connection.close()
            return request
        for file in files:
            os.close(file)
        connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(json.dumps({"code": code}).encode() + b"\n")
    return None


def _become(request: Mapping[str, Any], files: Sequence[int], parent: int) -> None:
    """Make a forked process what ``run_child`` would have started."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent(parent)
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
