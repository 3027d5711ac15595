"""A comparison that follows its runs: the page is written anew as they change, and served to this machine if asked."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import find
from rwkv_lab.runs.run import is_locked
from rwkv_lab.util.console import say

HOST = "127.0.0.1"
REFRESH = 10  # seconds between two looks at the runs, and after which a browser loads the page again
QUIET = 60.0  # seconds without a running job after which a study is over: a sweep pauses between its jobs


class _Server(ThreadingHTTPServer):
    """Hands out one file at /, whatever it is at the moment."""

    daemon_threads = True
    file: Path


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        # The page of another site could reach this port under its own name.
        named = (self.headers.get("Host") or "").rpartition(":")[0]
        if named not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path not in ("/", f"/{self.server.file.name}"):
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            content = self.server.file.read_bytes()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Leave the terminal to the command."""


@contextmanager
def served(file: Path, port: int) -> Iterator[str]:
    """Context manager: serves ``file`` on 127.0.0.1 only, on a free port if ``port`` is 0; gives the address."""
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as error:
        raise UserError(
            f"--serve {port}: {HOST}:{port} cannot be used: {error.strerror}; 0 takes a free port"
        ) from None
    server.file = file
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def state(paths: list[str]) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a run under ``paths`` does: sizes and times of the files that a page is made of."""
    found = []
    for run in find(*paths):
        for name in ("run.json", "metrics.csv"):
            try:
                about = (run.path / name).stat()
            except OSError:
                continue
            found.append((str(run.path / name), about.st_size, about.st_mtime_ns))
    return tuple(found)


def follow(paths: list[str], write: Callable[[bool], None], wait: Callable[[float], None] = time.sleep) -> None:
    """Call ``write(True)`` whenever a run under ``paths`` has changed, until none has been running for a minute.

    The last call is ``write(False)``, which makes the page that stays; also after Ctrl-C.
    """
    seen, quiet = None, 0.0
    try:
        while quiet < QUIET:
            now = state(paths)
            if now != seen:
                write(True)
                seen = now
            wait(REFRESH)
            quiet = 0.0 if any(is_locked(run.path) for run in find(*paths)) else quiet + REFRESH
    except KeyboardInterrupt:
        say("no longer watching; the page stays")
    write(False)
