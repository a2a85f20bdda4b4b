"""Files of the Hugging Face hub: asked for with patience, continued, and checked before use.

The hub library keeps no part of a download that failed, takes any bytes of the right size, and
tries again after few failures only. So Parley brings the bytes into the library's cache itself;
all else (addresses, tokens, the layout of the cache) stays the library's.
"""

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from huggingface_hub import (
    constants,
    get_session,
    hf_hub_download,
    hf_hub_url,
    logging,
    set_client_factory,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import (
    WeakFileLock,
    build_hf_headers,
    disable_progress_bars,
    hf_raise_for_status,
    parse_ratelimit_headers,
)

from stages.errors import AccessError
from stages.files import CHUNK, sha256_file
from stages.progress import say

DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
ANSWER_SECONDS = 30.0  # for a connection, and for each next piece of an answer
LONGEST_WAIT = 300.0  # seconds; what a server asks for is honoured up to this
SAID_WAIT = 5.0  # seconds; a longer wait is told

RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}
CUT = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
RANGE_NOT_SATISFIABLE = 416


class HubFile(NamedTuple):
    """A file at a commit, as the hub states it.

    ``digest`` is the sha256 of a large (LFS) file, 64 digits, or git's sha1 of a small one, 40.
    """

    path: str
    size: int
    digest: str


class GaveUp(Exception):
    """The last attempt at one request failed too; the message says how."""


class Patience:
    """The waits between attempts at one thing."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """After progress: all attempts again."""
        self._delays = iter(DELAYS)

    def wait(self, trouble: str, asked: float = 0.0) -> None:
        """Before the next attempt, ``asked`` seconds if the server wants more than the usual.

        Raises GaveUp when there is none.
        """
        delay = next(self._delays, None)
        if delay is None:
            raise GaveUp(
                f"{trouble} ({len(DELAYS) + 1} attempts; what has come is kept for the next run)"
            )
        delay = max(delay, min(asked, LONGEST_WAIT))
        if delay > SAID_WAIT:
            say(f"download: {trouble}: next attempt in {delay:.0f} s")
        time.sleep(delay)


class _PatientClient(httpx2.Client):
    """Sends each request again after a failure that may pass, and never waits without end."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        limits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            kind: min(limits.get(kind) or ANSWER_SECONDS, ANSWER_SECONDS)
            for kind in ("connect", "read", "write", "pool")
        }
        patience = Patience()
        while True:
            try:
                response = super().send(request, **options)
            except CUT as error:
                patience.wait(_trouble(request.url, error))
                continue
            if response.status_code not in RETRIED_STATUSES:
                return response
            response.close()
            patience.wait(
                f"{response.url.host} answers {response.status_code} {response.reason_phrase}",
                _asked_seconds(response.headers),
            )


def _trouble(url: httpx2.URL, error: Exception) -> str:
    """What went wrong with whom; the rest of an address may hold a signature."""
    return f"{url.host}: {' '.join(str(error).split()) or type(error).__name__}"


def _asked_seconds(headers: httpx2.Headers) -> float:
    limit = parse_ratelimit_headers(headers)
    asked = float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return max(asked, float(value))
    try:
        return max(asked, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # no date, or one without a time zone
        return asked


def be_patient() -> None:
    """Makes every request of the hub library a patient one, and the library quiet."""
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    hooks = get_session().event_hooks
    # Redirects and no limit of time, as in the library's own client; the limit is set for each.
    set_client_factory(
        lambda: _PatientClient(event_hooks=hooks, follow_redirects=True, timeout=None)
    )


def cached(name: str, commit: str, file: HubFile) -> Path | None:
    """The file in the library's cache, if it is there."""
    found = try_to_load_from_cache(name, file.path, revision=commit, repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def fetch(name: str, commit: str, file: HubFile, progress: Callable[[int], None]) -> Path:
    """The file in the library's cache, whole and with the contents that the hub states.

    ``progress`` is told of bytes as they come. Raises AccessError when it cannot be had, GaveUp,
    and the errors of the hub library.
    """
    path = cached(name, commit, file)
    downloads = 0
    while path is None or not _sound(path, file):
        if constants.is_offline_mode():
            raise AccessError(
                f"data.name: {file.path} of {name} is {'not in' if path is None else 'damaged in'} "
                "the cache, and HF_HUB_OFFLINE forbids to download it"
            )
        if path is not None:
            _forget(path)
        if downloads == 2:
            raise AccessError(
                f"data.name: {file.path} of {name} came twice with other contents than the hub "
                f"states (digest {file.digest[:12]}…): a fault of the hub, or of a server between"
            )
        path = _download(name, commit, file, progress)
        downloads += 1
    return path


def _sound(path: Path, file: HubFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    if len(file.digest) == hashlib.sha256().digest_size * 2:
        return sha256_file(path) == file.digest
    digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == file.digest


def _forget(path: Path) -> None:
    """Removes a file from the cache: the name in its snapshot and what that leads to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _download(name: str, commit: str, file: HubFile, progress: Callable[[int], None]) -> Path:
    """Brings the contents to where the library keeps them, and lets it name them."""
    cache, folder = (
        Path(constants.HF_HUB_CACHE),
        repo_folder_name(repo_id=name, repo_type="dataset"),
    )
    blob = cache / folder / "blobs" / file.digest
    lock = cache / ".locks" / folder / f"{file.digest}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            partial = blob.with_name(f"{file.digest}.partial")
            url = hf_hub_url(name, file.path, repo_type="dataset", revision=commit)
            _transfer(url, partial, file.size, progress)
            partial.replace(blob)
    return Path(hf_hub_download(name, file.path, repo_type="dataset", revision=commit))


def _transfer(url: str, partial: Path, size: int, progress: Callable[[int], None]) -> None:
    """Continues ``partial`` until it has ``size`` bytes; what came stays for the next run."""
    patience = Patience()
    partial.touch()
    furthest = have = partial.stat().st_size
    while have < size:
        # The bytes themselves, so that they can be counted and continued.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        trouble = f"an answer of {have:,} of {size:,} bytes"
        try:
            # A redirect to another host goes without the token: that is httpx's own rule.
            with get_session().stream("GET", url, headers=headers) as response:
                if response.status_code != RANGE_NOT_SATISFIABLE:
                    hf_raise_for_status(response)
                    with partial.open("ab" if response.status_code == 206 else "wb") as content:
                        for chunk in response.iter_bytes():
                            content.write(chunk)
                            progress(len(chunk))
                elif have:
                    partial.write_bytes(b"")
        except CUT as error:
            trouble = _trouble(httpx2.URL(url), error)
        have = partial.stat().st_size
        if have > furthest:
            patience.renew()
            furthest = have
        if have < size:
            patience.wait(trouble)
