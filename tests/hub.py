"""A small Hugging Face hub on loopback: as much of the real one as the libraries ask of it.

    with Hub() as hub:
        hub.add("acme/chats", {"train.jsonl": b"…"})
        hub.faults.append(Fault("acme/chats/resolve/.*jsonl", status=503, times=2))
        subprocess.run(…, env={**os.environ, **hub.environment(tmp_path)})

The libraries read their environment when they are imported: use the hub from a subprocess.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]

_API = re.compile(r"/api/datasets/(?P<name>[^/]+/[^/]+)(?:/(?P<what>[a-z-]+)/(?P<rest>.+))?")
# Large files: the hub states their sha256, and may keep them on another host.
LARGE = (".parquet",)
_STORED = re.compile(r"/stored/(?P<digest>[0-9a-f]{64})")
_FILE = re.compile(r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repository:
    """A data set: the files of each commit, and the branches and tags that name commits.

    To all but the bearer of the token ``reader``, a ``gated`` one shows the names of its files
    and, of their contents, ``open_files`` alone; a ``private`` one is not there.
    """

    gated: bool = False
    private: bool = False
    reader: str | None = None
    open_files: frozenset[str] = frozenset()
    names: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)

    def opens_to(self, token: str | None) -> bool:
        return self.reader is not None and token == self.reader


@dataclass(frozen=True)
class Asked:
    """A request that the hub had."""

    method: str
    path: str
    token: str | None
    range: str | None = None


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of ``method`` for a path with ``pattern``.

    ``status`` answers that, with ``headers``; ``sent`` bytes of a body arrive before the
    connection is closed (``reset``: torn down); ``hang`` never answers; ``wrong`` bytes come
    instead of the right ones, as many as those.
    """

    pattern: str
    method: str = "GET"
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int | None = None
    reset: bool = False
    hang: bool = False
    wrong: bool = False


class _Refused(Exception):
    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Moved(Exception):
    """The answer is elsewhere: a redirect with ``headers``."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__()
        self.headers = headers


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The server, as a context manager; ``asked`` lists the requests so far.

    Large files lie in ``stored``, and are served by ``storage``, another such server, if set.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.storage: Hub | None = None
        self.faults: list[Fault] = []
        self.closing = threading.Event()
        self.asked: list[Asked] = []
        self.tokens: set[str] = set()  # those of readers: any other is refused as invalid
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # By another name of this machine: another host, as the libraries see it.
        self.other_url = f"http://localhost:{self._server.server_port}"
        # Looks often whether to stop: the default makes each stop last half a second.
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(
        self,
        name: str,
        files: Files,
        *,
        revision: str = "main",
        gated: bool = False,
        private: bool = False,
        reader: str | None = None,
        open_files: frozenset[str] = frozenset(),
    ) -> str:
        """Commits ``files`` as the whole of ``revision`` and returns the commit's hash."""
        repository = self.repositories.setdefault(name, Repository())
        repository.gated, repository.private = gated, private
        repository.reader, repository.open_files = reader, open_files
        if reader is not None:
            self.tokens.add(reader)
        commit = hashlib.sha1(
            b"".join(path.encode() + b"\0" + files[path] + b"\0" for path in sorted(files))
        ).hexdigest()
        repository.names[revision] = commit
        repository.commits[commit] = files
        keeper = self.storage or self
        keeper.stored.update({sha256(c): c for path, c in files.items() if path.endswith(LARGE)})
        return commit

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, one time less."""
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables that send the libraries here, with their caches under ``home``."""
        return {"HF_ENDPOINT": self.url, **hub_environment(home), **more}


def hub_environment(home: Path) -> dict[str, str]:
    """Variables that keep the libraries' caches and tokens under ``home``, away from the user's."""
    return {
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_TOKEN": "",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._reply(self._get)

        def do_GET(self) -> None:
            self._reply(self._get)

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length).decode()
            self._reply(lambda path: self._post(path, body))

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _reply(self, answer: Callable[[str], tuple[bytes, dict[str, str]]]) -> None:
            path = unquote(urlsplit(self.path).path)
            part = self.headers.get("Range")
            hub.asked.append(Asked(self.command, path, self._token(), part))
            fault = hub.fault(self.command, path)
            if fault is not None and fault.hang:
                hub.closing.wait(60)
                self.close_connection = True
                return
            try:
                if fault is not None and fault.status is not None:
                    body, headers, status = b"", dict(fault.headers), fault.status
                else:
                    body, headers = answer(path)
                    status = 200
            except _Refused as refusal:
                body, status = b"", refusal.status
                headers = {"X-Error-Message": str(refusal)}
                if refusal.code is not None:
                    headers["X-Error-Code"] = refusal.code
            except _Moved as moved:
                body, headers, status = b"", moved.headers, 302
            if status == 200 and part is not None:
                start = int(part.removeprefix("bytes=").removesuffix("-"))
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body, status = body[start:], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self._send(body, fault)

        def _send(self, body: bytes, fault: Fault | None) -> None:
            if fault is not None and fault.wrong:
                body = bytes(255 - byte for byte in body)
            if fault is None or fault.sent is None:
                self.wfile.write(body)
                return
            self.wfile.write(body[: fault.sent])
            self.wfile.flush()
            if fault.reset:
                nothing_waits = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, nothing_waits)
            self.close_connection = True

        def _token(self) -> str | None:
            return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

        def _get(self, path: str) -> tuple[bytes, dict[str, str]]:
            if found := _FILE.fullmatch(path):
                repository, commit = self._commit(found["name"], found["revision"])
                if found["path"] not in repository.open_files:
                    self._admit(repository)
                content = self._file(repository.commits[commit], found["path"])
                if not found["path"].endswith(LARGE):
                    return content, {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": commit}
                digest = sha256(content)
                headers = {
                    "X-Linked-Etag": f'"{digest}"',
                    "X-Linked-Size": str(len(content)),
                    "X-Repo-Commit": commit,
                }
                if hub.storage is None:
                    return content, headers
                place = f"{hub.storage.other_url}/stored/{digest}?signature=secret"
                raise _Moved({**headers, "Location": place})
            if (found := _STORED.fullmatch(path)) and found["digest"] in hub.stored:
                return hub.stored[found["digest"]], {"ETag": '"of the storage"'}
            if found := _API.fullmatch(path):
                what = found["what"]
                revision, below = found["rest"] or "main", ""
                if what == "tree":
                    revision, _, below = revision.partition("/")
                repository, commit = self._commit(found["name"], revision)
                files = repository.commits[commit]
                if what in (None, "revision"):
                    siblings = [{"rfilename": name} for name in sorted(files)]
                    info = {"id": found["name"], "sha": commit, "siblings": siblings}
                    return _json({**info, "gated": repository.gated, "private": repository.private})
                if what == "tree":
                    recursive = parse_qs(urlsplit(self.path).query).get("recursive") != ["false"]
                    return _json(_tree(files, below, recursive))
            raise _Refused(404, None, "Not Found")

        def _post(self, path: str, body: str) -> tuple[bytes, dict[str, str]]:
            found = _API.fullmatch(path)
            if found is None or found["what"] != "paths-info":
                raise _Refused(404, None, "Not Found")
            repository, commit = self._commit(found["name"], found["rest"])
            files = repository.commits[commit]
            entries = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
            return _json([entries[p] for p in parse_qs(body).get("paths", []) if p in entries])

        def _commit(self, name: str, revision: str) -> tuple[Repository, str]:
            token = self._token()
            if token is not None and token not in hub.tokens:
                raise _Refused(401, None, "Invalid credentials in Authorization header")
            repository = hub.repositories.get(name)
            if repository is None or (repository.private and not repository.opens_to(token)):
                # Who is nobody is not told what exists.
                if token is None:
                    raise _Refused(401, None, "Invalid username or password.")
                raise _Refused(404, "RepoNotFound", "Repository not found")
            commit = repository.names.get(revision, revision)
            if commit not in repository.commits:
                raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return repository, commit

        def _admit(self, repository: Repository) -> None:
            if repository.gated and not repository.opens_to(self._token()):
                status = 401 if self._token() is None else 403
                raise _Refused(status, "GatedRepo", "Access to this data set is restricted.")

        def _file(self, files: Files, path: str) -> bytes:
            if path not in files:
                raise _Refused(404, "EntryNotFound", "Entry not found")
            return files[path]

    return Handler


def _tree(files: Files, below: str, recursive: bool) -> list[dict[str, Any]]:
    root = f"{below}/" if below else ""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(files):
        if not path.startswith(root):
            continue
        folders = path[len(root) :].split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = root + "/".join(folders[:depth])
            if recursive or depth == 1:
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        if recursive or not folders:
            size = len(files[path])
            oid = git_sha1(files[path])
            entries[path] = {"type": "file", "path": path, "oid": oid, "size": size}
            if path.endswith(LARGE):
                entries[path]["lfs"] = {"oid": sha256(files[path]), "size": size, "pointerSize": 99}
    return list(entries.values())


def _json(value: object) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}
