"""A stand-in for the Hugging Face hub on localhost: the read API that Minari's download uses, over a Minari folder."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWNER = "farama-minari"
COMMIT = "0" * 40
LARGE = 4096  # bytes from which a file has a checksum of its own, as with git LFS


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def log_message(self, *arguments):
        self.server.seen.append(f"{self.command} {self.path}")

    def answer(self, body: bool):
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        query = urllib.parse.parse_qs(url.query)
        root: Path = self.server.folder
        if parts == [""]:
            return self.send(200, b"", body)
        if parts == ["api", "datasets"]:
            named = query.get("search", query.get("dataset_name", [""]))[0]
            groups = [p.name for p in root.iterdir() if not p.name.startswith(".") and named.lower() in p.name.lower()]
            return self.json([{"id": f"{OWNER}/{group}", "_id": group} for group in groups], body)
        if parts[:2] == ["api", "datasets"] and (root / parts[3]).is_dir():
            group = root / parts[3]
            if len(parts) > 4 and parts[4] == "tree":
                below = group.joinpath(*parts[6:])
                if not below.exists():
                    return self.missing("EntryNotFound", body)
                files = sorted(p for p in below.rglob("*") if p.is_file())
                return self.json([self.entry(group, path) for path in files], body)
            return self.json({"id": f"{OWNER}/{group.name}", "_id": group.name, "sha": COMMIT, "siblings": []}, body)
        if parts[0] == "datasets" and parts[3] == "resolve":
            path = root / parts[2] / Path(*parts[5:])
            return self.file(path, body) if path.is_file() else self.missing("EntryNotFound", body)
        return self.missing("RepoNotFound", body)

    def entry(self, group: Path, path: Path) -> dict:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        large = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 130}} if len(content) >= LARGE else {}
        name = path.relative_to(group).as_posix()
        return {"type": "file", "path": name, "size": len(content), "oid": digest[:40], **large}

    def file(self, path: Path, body: bool):
        content = path.read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        if self.server.mode == "corrupt" and len(content) >= LARGE:
            content = content[:-100] + b"\xff" * 100
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        if body and self.server.mode == "broken" and len(content) >= LARGE:
            self.send(200, content, body, headers, sent=len(content) // 2)
            self.close_connection = True
            return
        self.send(200, content, body, headers)

    def json(self, content, body: bool):
        self.send(200, json.dumps(content).encode(), body, {"Content-Type": "application/json"})

    def missing(self, code: str, body: bool):
        self.send(404, b"{}", body, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def send(self, status: int, content: bytes, body: bool, headers: dict | None = None, sent: int | None = None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[:sent])


@contextmanager
def serve(folder: Path, mode: str = "") -> Iterator[str]:
    """Serve a Minari folder; yields the endpoint. Mode "broken": large files stop half-way, "corrupt": wrong bytes."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.mode, server.seen = folder, mode, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
