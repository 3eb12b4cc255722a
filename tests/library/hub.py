"""A stand-in of the hub, at the boundary of the network: repositories, commits, files by revision, and nothing else."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers what `huggingface_hub` asks when it makes a repository, uploads a folder and fetches a snapshot."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("authorization") != "Bearer secret":
            return self.answer({"error": "no token"}, 401)
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, [given.get("organization"), given["name"]]))
            self.server.repos.setdefault(name, {})
            return self.answer({"url": f"https://huggingface.co/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repo, _, kind = self.path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")
        if kind == "preupload":
            files = json.loads(body)["files"]
            entries = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for one in files
            ]
            return self.answer({"files": entries})
        if kind == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
            }
            revision = hashlib.sha1(body).hexdigest()
            self.server.repos[repo][revision] = files
            return self.answer(
                {
                    "success": True,
                    "commitOid": revision,
                    "commitUrl": f"https://huggingface.co/{repo}/commit/{revision}",
                }
            )
        return self.answer({"error": "unknown"}, 404)

    def do_GET(self):
        self.fetch()

    def do_HEAD(self):
        self.fetch()

    def fetch(self):
        path = self.path.split("?")[0]
        for repo, revisions in self.server.repos.items():
            for revision, files in revisions.items():
                if path == f"/api/models/{repo}/revision/{revision}":
                    return self.answer(
                        {"id": repo, "sha": revision, "siblings": [{"rfilename": name} for name in files]}
                    )
                if path.startswith(f"/api/models/{repo}/tree/{revision}"):
                    entries = [
                        {"type": "file", "path": name, "size": len(one), "oid": hashlib.sha1(one).hexdigest()}
                        for name, one in files.items()
                    ]
                    return self.answer(entries)
                name = path.removeprefix(f"/{repo}/resolve/{revision}/")
                if name in files:
                    headers = {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"', "X-Repo-Commit": revision}
                    return self.send(files[name], 200, headers)
        if path.startswith("/api/models/"):
            return self.answer({"error": "not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return self.answer({"error": "not found"}, 404)

    def answer(self, content, status=200, headers=()):
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json"} | dict(headers))

    def send(self, content, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def running():
    """The address of a stand-in, and its repositories: {repo: {revision: {file: bytes}}}."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repos = {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.repos
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
