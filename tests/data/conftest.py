"""A cache of the test's own, small texts, and a scripted web server on loopback."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import settings

from rwkv_lab.data import Corpus, load
from tests.data.configs import data_config, tokenizer_config

# how long an example takes says more of the machine's other work than of the code
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def load_text(tmp_path: Path, cache: Path) -> Callable[..., Corpus]:
    """Writes bytes to a file and loads it as data=text; keywords are fields of the two configs."""

    def make(content: bytes, tokenizer: str = "char", split: tuple[float, ...] = (0.9, 0.1), **fields: str) -> Corpus:
        file = tmp_path / "text.txt"
        file.write_bytes(content)
        data = data_config("text", path=str(file), split=list(split), cache_dir=str(cache))
        return load(data, tokenizer_config(tokenizer, **fields))

    return make


@dataclass
class Server:
    """Answers the requests for every path in turn as scripted; the last answer stays.

    An answer is (status, body) or (status, body, bytes after which the connection is cut)."""

    url: str = ""
    script: dict[str, list[tuple]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple:
        self.asked.append(path)
        answers = self.script[path]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def server() -> Iterator[Server]:
    scripted = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, *cut = scripted.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: cut[0]] if cut else body)
            if cut:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        scripted.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield scripted
        listening.shutdown()
        thread.join()
