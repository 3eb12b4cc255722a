"""A cluster as far as Snakemake's executor asks one: its pods are processes of this machine, in folders of their own."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONFIG = """
apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
clusters: [{{name: test, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: test, user: {{}}}}]
"""
IN_IMAGE = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": "/root"}
"""All that a pod has of its own: the packages of this environment."""


class Cluster(ThreadingHTTPServer):
    """Holds the jobs that were asked for, and what became of each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.jobs, self.ended = folder, {}, {}

    def start(self, job: dict) -> None:
        """Run the container of a job, and keep its status."""
        name, container = job["metadata"]["name"], job["spec"]["template"]["spec"]["containers"][0]
        self.jobs[name] = job
        workdir = self.folder / name
        workdir.mkdir()

        def run() -> None:
            with (workdir / "log").open("w") as log:
                command = [*container["command"], *container["args"]]
                done = subprocess.run(command, cwd=workdir, env=IN_IMAGE, stdout=log, stderr=subprocess.STDOUT)
            self.ended[name] = {"failed": 1} if done.returncode else {"succeeded": 1}

        threading.Thread(target=run, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """The few requests that the executor makes."""

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.split("?")[0].endswith("/jobs"):
            self.server.start(content)
        self._answer(content)

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].split("/")
        if parts[-1] == "pods":
            self._answer({"items": []})
        else:
            self._answer({"metadata": {"name": parts[-2]}, "status": self.server.ended.get(parts[-2], {"active": 1})})

    def do_DELETE(self) -> None:
        self._answer({"status": "Success"})

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@contextmanager
def started(folder: Path) -> Iterator[tuple[Cluster, dict[str, str]]]:
    """A cluster, and the variables with which it is found."""
    with Cluster(folder) as cluster:
        (folder / "config").write_text(CONFIG.format(port=cluster.server_address[1]))
        threading.Thread(target=cluster.serve_forever, daemon=True).start()
        yield cluster, {"KUBECONFIG": str(folder / "config")}
        cluster.shutdown()
