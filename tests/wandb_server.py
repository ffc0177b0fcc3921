"""A stand-in for W&B's server: answers what its libraries ask about a project, and keeps what they save."""

import base64
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = 10 * "abcd"
"""Of the one account."""


class Server(ThreadingHTTPServer):
    """Has one project, `me/sprites`.

    Args:
        runs: summaries of its runs.
    """

    daemon_threads = True

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs, self.saved = runs, list[dict[str, Any]]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL answer, as W&B's schema has it."""
        if "mutation UpsertView2" in query:
            self.saved.append(dict(variables))
            return {
                "upsertView": {"view": {"id": "VmlldzoxMjM=", "name": variables["name"]}, "inserted": True}
            }
        if "query Runs" in query:
            known = (variables["entity"], variables["project"]) == ("me", "sprites")
            return {"project": self._project() if known else None}
        account = {"id": "VXNlcjox", "entity": "me", "username": "me", "email": "", "flags": "{}"}
        return {"viewer": {**account, "teams": {"edges": []}}}

    def _project(self) -> dict[str, Any]:
        edges = [
            {"node": {"name": f"run{index}", "state": "finished", **texts}, "cursor": str(index)}
            for index, summary in enumerate(self.runs)
            for texts in [{"config": "{}", "systemMetrics": "{}", "summaryMetrics": json.dumps(summary)}]
        ]
        page = {"endCursor": None, "hasNextPage": False}
        return {"runCount": len(edges), "readOnly": False, "runs": {"edges": edges, "pageInfo": page}}


class Handler(BaseHTTPRequestHandler):
    """Answers to who brings the key."""

    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":
            return self._send(404, {})
        key = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
        if key != f"api:{KEY}":
            return self._send(401, {"errors": [{"message": "user is not logged in"}]})
        asked = json.loads(body)
        return self._send(200, {"data": self.server.answer(asked["query"], asked.get("variables") or {})})

    def do_GET(self) -> None:
        self._send(404, {})

    def _send(self, status: int, answer: Mapping[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def serving(runs: Sequence[Mapping[str, Any]]) -> Iterator[Server]:
    """The server, while it runs."""
    with Server(runs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
