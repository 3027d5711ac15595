"""A stand-in for a wandb server on this machine, which accepts a run and answers its stream of rows as told."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class WandbServer:
    """The server's address and what it has been sent."""

    url: str = ""
    steps: list[int] = field(default_factory=list)  # of the rows it has accepted
    queries: list[str] = field(default_factory=list)  # names of the GraphQL requests

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": self.url}


@contextmanager
def wandb_server(stream_status: int = 200, query_status: int = 200) -> Iterator[WandbServer]:
    """Context with a server that answers rows with ``stream_status``, and all else with ``query_status``."""
    seen = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw

        def do_GET(self) -> None:
            self.answer(query_status, {})

        def do_PUT(self) -> None:
            self.body()
            self.answer(200, {})

        def do_POST(self) -> None:
            body = self.body()
            if "file_stream" in self.path:
                history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
                if stream_status == 200:
                    seen.steps += [json.loads(line)["step"] for line in history.get("content", ())]
                self.answer(stream_status, {"limits": {}} if stream_status == 200 else {"error": "refused"})
            elif "graphql" in self.path:
                content = json.loads(body)
                name = re.search(r"(?:query|mutation)\s+(\w+)", content.get("query", ""))
                seen.queries.append(name[1] if name else "")
                self.answer(query_status, {"data": replies(content.get("variables") or {})})
            else:
                self.answer(200, {})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()


def replies(variables: dict[str, Any]) -> dict[str, Any]:
    """Return an answer that fits every request a run makes."""
    project = {"id": "p", "name": "lab", "entity": {"id": "e", "name": "me"}}
    bucket = {"id": "b", "name": variables.get("name") or "run", "displayName": "d", "project": project}
    return {
        "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
        "serverInfo": {"cliVersionInfo": {}, "features": []},
        "model": None,
        "upsertBucket": {"bucket": bucket | {"config": "{}", "historyLineCount": 0}, "inserted": True},
        "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []},
    }
