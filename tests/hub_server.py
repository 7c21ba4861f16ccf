"""A model hub on this machine: enough of the public HTTP interface for huggingface_hub's own client."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?"
)
_FILE = re.compile(r"(/(?P<kind>datasets))?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")

Files = dict[str, bytes]


@dataclass
class Hub:
    """Repositories by "models/OWNER/NAME" or "datasets/OWNER/NAME": commits, oldest first, each with its files; the
    latest commit of each branch."""

    url: str = ""
    repositories: dict[str, list[tuple[str, Files]]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def commit(self, repo: str, files: Files, branch: str = "main") -> str:
        """One more commit on a branch; its name."""
        made = self.repositories.setdefault(repo, [])
        name = hashlib.sha1(f"{repo} {len(made)}".encode()).hexdigest()
        made.append((name, files))
        self.branches[repo, branch] = name
        return name

    def at(self, repo: str, revision: str | None) -> tuple[str, Files] | None:
        """What a branch (main unless given) or a commit's own name stands for."""
        name = self.branches.get((repo, revision or "main"), revision)
        return next((commit for commit in self.repositories.get(repo, []) if commit[0] == name), None)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers at `url` until the end of the block."""
    hub = Hub()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            hub.asked.append(f"{self.command} {path}")
            found = _API.fullmatch(path)
            at = unquote(found["revision"] or "main") if found else None
            commit = hub.at(f"{found['kind']}/{found['repo']}", at) if found else None
            if found and commit:
                name, files = commit
                tree = [{"type": "file", "path": f, "size": len(c), "oid": _digest(c)} for f, c in files.items()]
                about = {"id": found["repo"], "sha": name, "siblings": [{"rfilename": f} for f in files]}
                self._give(json.dumps(tree if found["what"] == "tree" else about).encode(), name)
            elif found := _FILE.fullmatch(path):
                commit = hub.at(f"{found['kind'] or 'models'}/{found['repo']}", unquote(found["revision"]))
                if commit and unquote(found["name"]) in commit[1]:
                    self._give(commit[1][unquote(found["name"])], commit[0])
                else:
                    self._refuse("EntryNotFound" if commit else "RevisionNotFound")
            else:
                self._refuse("RepoNotFound")

        def _give(self, content: bytes, commit: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{_digest(content)}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def _refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
