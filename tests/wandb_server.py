"""A Weights & Biases server on loopback, as much of one as ``wandb`` asks for."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "entity", "name": "tests"}


@dataclass
class ServedRun:
    """What arrived of a run."""

    id: str
    project: str
    name: str
    resumed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    # By number of its line: a line that comes twice is the later one.
    lines: dict[int, str] = field(default_factory=dict)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, of which none may be missing."""
        assert sorted(self.lines) == list(range(len(self.lines)))
        return [json.loads(self.lines[number]) for number in sorted(self.lines)]

    def table(self, name: str) -> dict[str, Any]:
        """A table that was logged under this name."""
        table: dict[str, Any] = json.loads(self.files[f"{name}.table.json"])
        return table


class WandbServer(ThreadingHTTPServer):
    """Keeps what arrives in ``runs``.

    It refuses every request when ``status`` is not 200, and leaves all that come after the
    operation ``hangs_after`` without an answer until ``close``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runs: dict[str, ServedRun] = {}
        self.status = 200
        self.hangs_after: str | None = None
        self.awake = threading.Event()
        self.awake.set()
        self.errors: list[BaseException] = []

    def the_run(self) -> ServedRun:
        (run,) = self.runs.values()
        return run

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ``wandb`` left open when it ended, as it does."""

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """What GraphQL answers; a question that is not known here gets an empty answer."""
        match operation:
            case "Viewer":
                teams: dict[str, Any] = {"edges": []}
                name = ENTITY["name"]
                return {"viewer": {"id": name, "entity": name, "username": name, "teams": teams}}
            case "RunResumeStatus":
                run = self.runs.get(given["name"])
                bucket = None if run is None else _resumable(run)
                return {"model": {**_project(given["project"]), "bucket": bucket}}
            case "UpsertBucket":
                return {"upsertBucket": self._upsert(given)}
            case "ArtifactType":
                return {"project": None}
            case "CreateRunFiles":
                files = [
                    {"name": n, "uploadUrl": self._place(given["run"], n)} for n in given["files"]
                ]
                answer = {"runID": given["run"], "uploadHeaders": [], "files": files}
                return {"createRunFiles": answer}
            case "CreateArtifact":
                # An artifact has the id of its run, so that its files are kept there.
                artifact = {"id": given["input"]["runName"], "state": "PENDING"}
                sequence = {"artifactSequence": {"latestArtifact": None}}
                return {"createArtifact": {"artifact": {**artifact, **sequence}}}
            case "CreateArtifactManifest":
                url = self._place(given["runName"], given["name"])
                file = {"id": "file", "uploadUrl": url, "uploadHeaders": []}
                manifest = {"id": "manifest", "file": file}
                return {"createArtifactManifest": {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                nodes = [
                    {
                        "uploadUrl": self._place(file["artifactID"], file["name"]),
                        "uploadHeaders": [],
                        "artifact": {"id": file["artifactID"]},
                    }
                    for file in given["input"]["artifactFiles"]
                ]
                return {"createArtifactFiles": {"files": {"edges": [{"node": n} for n in nodes]}}}
            case "CommitArtifact":
                artifact = {"id": given["artifactID"], "digest": ""}
                return {"commitArtifact": {"artifact": artifact}}
        return {}

    def stream(self, run: ServedRun, sent: dict[str, Any]) -> None:
        """Takes a part of a run's history and summary, and its end."""
        for name, part in sent.get("files", {}).items():
            if name == "wandb-history.jsonl":
                run.lines.update(enumerate(part["content"], part["offset"]))
            elif name == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        new = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], ServedRun(given["name"], given["project"], ""))
        run.resumed += given["id"] is not None
        run.name = given["displayName"] or run.name or "a-name-of-the-server"
        run.config = json.loads(given["config"] or "null") or run.config
        bucket = {"id": run.id, "name": run.id, "displayName": run.name}
        return {"inserted": new, "bucket": {**bucket, "project": _project(run.project)}}

    def _place(self, run: str, file: str) -> str:
        return f"{self.url}/upload/{run}/{file}"


def _project(name: str) -> dict[str, Any]:
    return {"id": "project", "name": name, "entity": ENTITY}


def _resumable(run: ServedRun) -> dict[str, Any]:
    """Where a run stands that goes on."""
    return {
        "id": run.id,
        "name": run.id,
        "displayName": run.name,
        "summaryMetrics": json.dumps(run.summary),
        "config": json.dumps(run.config),
        "historyLineCount": len(run.lines),
        "historyTail": json.dumps([run.lines[max(run.lines)]] if run.lines else []),
        "eventsLineCount": 0,
        "eventsTail": "[]",
        "logLineCount": 0,
        "tags": [],
        "wandbConfig": json.dumps({"t": 1}),  # a run that has begun
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *_: Any) -> None: ...

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.awake.wait()
        answer: dict[str, Any] = {}
        if self.server.status == 200:
            try:
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = self._take(body)
            except Exception as error:
                self.server.errors.append(error)
        data = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _do

    def _take(self, body: bytes) -> dict[str, Any]:
        match self.path.split("/", 3)[1:]:
            case ["graphql"]:
                asked = json.loads(body)
                # What the package asks from Python has no name beside.
                words = asked.get("operationName") or asked["query"].split()[1].partition("(")[0]
                if words == self.server.hangs_after:
                    self.server.awake.clear()
                return {"data": self.server.answer(words, asked.get("variables") or {})}
            case ["files", _, rest]:
                self.server.stream(self.server.runs[rest.split("/")[1]], json.loads(body))
            case ["upload", run, name]:
                self.server.runs[run].files[name] = body
        return {}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server that lives in a thread; what went wrong in it is raised at the end."""
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.awake.set()
        server.server_close()
        thread.join()
    assert server.errors == []
