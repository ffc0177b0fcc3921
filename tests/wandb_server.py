"""A stand-in for W&B's server: answers what its libraries ask about a project, and keeps what they send."""

import base64
import gzip
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = 10 * "abcd"
"""Of the one account."""
PROJECT = {"id": "UHJvamVjdDox", "name": "sprites", "entity": {"id": "RW50aXR5OjE=", "name": "me"}}


class Server(ThreadingHTTPServer):
    """Has one project, `me/sprites`.

    Args:
        runs: summaries of its runs.
    """

    daemon_threads = True

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs, self.saved = runs, list[dict[str, Any]]()
        self.uploaded: dict[str, list[dict[str, Any]]] = {}
        """Rows by the id of a run."""

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
        if "RunResumeStatus" in query:
            found = self._bucket(variables["name"]) if variables["name"] in self.uploaded else None
            return {"model": {**PROJECT, "bucket": found}}
        if "UpsertBucket" in query:
            self.uploaded.setdefault(variables["name"], [])
            return {"upsertBucket": {"bucket": self._bucket(variables["name"]), "inserted": True}}
        if "CreateRunFiles" in query:
            return {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": []}}
        account = {"id": "VXNlcjox", "entity": "me", "username": "me", "email": "", "flags": "{}"}
        return {"viewer": {**account, "teams": {"edges": []}}}

    def take(self, run: str, files: Mapping[str, Any]) -> None:
        """Rows of a run; a row that is sent again replaces what is there."""
        if history := files.get("wandb-history.jsonl"):
            rows = self.uploaded[run]
            rows[history["offset"] :] = [json.loads(line) for line in history["content"]]

    def _bucket(self, run: str) -> dict[str, Any]:
        rows = self.uploaded[run]
        counts = {"historyLineCount": len(rows), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]"}
        texts = {"config": "{}", "summaryMetrics": "{}", "wandbConfig": '{"t": 1}', "tags": []}
        return {"id": "UnVu", "name": run, "displayName": run, "project": PROJECT, **counts, **tails, **texts}

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
        if self.path.endswith("/file_stream"):
            text = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
            self.server.take(self.path.split("/")[-2], json.loads(text).get("files") or {})
            return self._send(200, {"exitcode": None, "limits": {}})
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
