"""A stand-in for the Hugging Face Hub's HTTP API on 127.0.0.1: repositories, commits, large files by Git LFS.

It follows what huggingface_hub sends on the wire (create, preupload, LFS batch, commit) and keeps what it is
given; whoever shows another token than its own is turned away.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "c" * 40


class HubStandIn(BaseHTTPRequestHandler):
    """One request. The server's `repos` hold, by name: `private`, `files`, `messages`."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body, path = self.rfile.read(int(self.headers["Content-Length"])), urlsplit(self.path).path
        if self.stranger():
            return
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self.answer(200, {"files": [self.mode(file) for file in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self.place(one) for one in json.loads(body)["objects"]]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self.commit(path, [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {"error": f"nothing at {path}"})

    def do_PUT(self) -> None:
        """A large file, at the address that the batch gave; it must be the one that was announced."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        right = hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
        if right:
            self.server.large[self.path.rpartition("/")[2]] = body
        self.answer(200 if right else 400, {})

    def do_GET(self) -> None:
        if self.stranger():
            return
        name = urlsplit(self.path).path.removeprefix("/api/models/")
        repo = self.server.repos.get(name)
        found = {"id": name, "sha": COMMIT, "private": repo["private"], "siblings": []} if repo else {}
        self.answer(200 if repo else 404, found)

    def stranger(self) -> bool:
        """Whether who asks has another token; then they are told, with their token, so that a leak shows."""
        wrong = self.headers["Authorization"] != f"Bearer {self.server.token}"
        if wrong:
            self.answer(401, {"error": f"Invalid token {self.headers['Authorization']}"})
        return wrong

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repos:
            return self.answer(409, {"error": "You already created this model repo"})
        private = asked.get("visibility") == "private"
        self.server.repos[name] = {"private": private, "files": {}, "messages": []}
        return self.answer(200, {"url": f"{self.server.url}/{name}", "name": name, "private": private})

    def mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".safetensors", ".gguf", ".onnx"))
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def place(self, one: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.server.url}/lfs/{one['oid']}"}
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": upload}}

    def commit(self, path: str, lines: list[dict[str, Any]]) -> None:
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        repo = self.server.repos[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo["messages"].append(value["summary"])
            elif line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile", line["key"]
                repo["files"][value["path"]] = self.server.large[value["oid"]]
        url = f"{self.server.url}/{name}/commit/{COMMIT}"
        self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})

    def answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def hub(token: str) -> Iterator[Any]:
    """The server, with `url`, `repos` and `large`, until the end of the block."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), HubStandIn)
    server.token, server.repos, server.large = token, {}, {}
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
