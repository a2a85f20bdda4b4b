"""Data sets of the Hugging Face hub: `datasets` says which files a split has, Parley reads them.

A broken line then costs that line, as in a local file, and not the whole load. Files of a kind
that Parley has no reader for go through the loader that `datasets` has for them, once they are
here. What a commit holds never changes, so the list of its files is kept beside the library's
cache: with a whole commit hash and all files in the cache no request is made.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stages.download.folders import COMPRESSIONS, KINDS
from stages.download.params import DataParams
from stages.download.readers import rows_of
from stages.download.rows import Part, Rows
from stages.download.tables import batch_rows
from stages.errors import DISK_ERRNOS, AccessError, DataError, SettingsError, StageError
from stages.files import write_json, write_text
from stages.progress import Progress

if TYPE_CHECKING:
    from stages.download.transfer import HubFile

PATHS_PER_REQUEST = 500
READ_ROWS = 1024  # at a time

# Loaders of `datasets` whose files Parley reads itself, and the names of such files.
_OWN_LOADERS = {"csv", "json", "parquet", "text"}
_PACKED = "|".join(map(re.escape, COMPRESSIONS))
_OWN_FILES = re.compile(rf".+\.({'|'.join(KINDS)})({_PACKED})?", re.IGNORECASE | re.DOTALL)

# What every loader's configuration has; the rest are options that a data set's card can set.
_NOT_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features"}

# How messages of the `datasets` library begin, and names of exceptions of those it is built on.
_CONFIG_ERRORS = ("BuilderConfig", "Config name is missing", "There are multiple")
_SPLIT_ERRORS = ("Unknown split", "Unrecognized instruction", "Percent slice", "Instruction ")
_NETWORK_ERRORS = {"HTTPError", "ConnectionError", "TimeoutError", "LocalEntryNotFoundError"}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_QUERY = re.compile(r"(https?://[^\s?]+)\?[^\s'\"]+")  # may hold a signature
_SCRIPT = "Dataset scripts are no longer supported"


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The files of one configuration at a commit.

    ``name`` is the hub's own for the data set; ``loader`` and ``options`` (those that are not its
    defaults) are what `datasets` would read the files with.
    """

    name: str
    commit: str
    loader: str
    options: dict[str, Any]
    splits: dict[str, "list[HubFile]"]

    def is_read_here(self, split: str) -> bool:
        """Whether Parley has readers for all files of ``split``."""
        return (
            self.loader in _OWN_LOADERS
            and not self.options
            and all(_OWN_FILES.fullmatch(file.path) for file in self.splits[split])
        )


def hub_rows(params: DataParams) -> Rows:
    """Rows of a data set on the Hugging Face hub; a file is fetched when its rows are wanted.

    ``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` come from the environment.
    Raises SettingsError, DataError, AccessError.
    """
    with _failures_named(params):
        yield from _split_rows(_listing(params), params)


def hub_parts(params: DataParams) -> list[Part]:
    """The rows of ``hub_rows`` file by file, or in one part where files can't be told apart."""
    with _failures_named(params):
        listing = _listing(params)
        if params.split not in listing.splits or not listing.is_read_here(params.split):
            return [functools.partial(hub_rows, params)]
    return [
        functools.partial(_part_rows, params, dataclasses.replace(listing, splits={split: [file]}))
        for split, files in listing.splits.items()
        if split == params.split
        for file in files
    ]


def _part_rows(params: DataParams, listing: _Listing) -> Rows:
    with _failures_named(params):
        yield from _rows(listing, params.split, params.reads)


@contextlib.contextmanager
def _failures_named(params: DataParams) -> Iterator[None]:
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        raise _failure(params, error) from error


def _listing(params: DataParams) -> _Listing:
    commit = hub_commit(params.name, params.revision)
    return _kept_listing(params, commit) or _asked_listing(params, commit)


def hub_commit(name: str, revision: str | None) -> str:
    """The commit that ``revision`` (None: the main branch) names.

    Offline it is the one that the hub named last. Raises AccessError, SettingsError.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import constants

    kept = _keep(name, "refs") / quote(revision or "HEAD", safe="")
    if constants.is_offline_mode():
        try:
            return kept.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise AccessError(
                f"data.revision: the cache does not tell which commit of {name} is "
                f"'{revision or 'the newest'}', and HF_HUB_OFFLINE forbids to ask"
            ) from None
    commit = _asked_commit(name, revision)[1]
    with contextlib.suppress(OSError):  # as where the cache may only be read
        write_text(kept, commit)
    return commit


def _keep(name: str, folder: str) -> Path:
    """Where the hub library wants what others keep about a data set."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "parley" / name.replace("/", "--") / folder


@functools.cache
def _asked_commit(name: str, revision: str | None) -> tuple[str, str]:
    """The hub's own name for the data set ``name``, and the commit of ``revision``.

    Asked once: all that a run reads and reports is of one commit.
    """
    from huggingface_hub import HfApi, errors, get_token

    from stages.download.transfer import be_patient

    be_patient()
    try:
        info = HfApi().dataset_info(name, revision=revision)
    except errors.RevisionNotFoundError:
        raise AccessError(f"data.revision: {name} has no revision '{revision}'") from None
    except errors.GatedRepoError as error:
        raise _gated(name, error) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        # Who sends no token learns of a private data set no more than of one that is not there.
        if status == 404 or (status == 401 and get_token() is None):
            raise AccessError(
                f"data.name: no data set '{name}' on the hub (an id looks like owner/name; a "
                "private one needs HF_TOKEN in the environment)"
            ) from None
        if status in (401, 403):
            raise AccessError(
                f"data.name: the hub refuses {name} to the token of HF_TOKEN: is it valid, and "
                "may it read this data set?"
            ) from None
        raise _unreachable(name, error) from None
    except Exception as error:  # those of the HTTP library, or no answer of a hub at all
        raise _unreachable(name, error) from None
    if info.sha is None:
        raise AccessError(f"data.name: the hub names no commit of {name}")
    return info.id, info.sha


def _datasets() -> Any:
    """The library, made quiet: what goes wrong for good is told in one line at the end."""
    import datasets

    datasets.logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


# --- which files ---


def _listing_file(params: DataParams, commit: str) -> Path:
    config = "" if params.config is None else f"-{quote(params.config, safe='')}"
    return _keep(params.name, commit) / f"files{config}.json"


def _kept_listing(params: DataParams, commit: str) -> _Listing | None:
    from stages.download.transfer import HubFile

    try:
        kept = json.loads(_listing_file(params, commit).read_bytes())
        splits = {s: [HubFile(*file) for file in files] for s, files in kept["splits"].items()}
        return _Listing(kept["name"], commit, kept["loader"], kept["options"], splits)
    except (OSError, ValueError, KeyError, TypeError):  # not there, or of another version
        return None


def _asked_listing(params: DataParams, commit: str) -> _Listing:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise AccessError(
            f"data.name: {params.name} at {commit} with data.config "
            f"'{params.config or 'null'}' is not in the cache, and HF_HUB_OFFLINE forbids to ask"
        )
    name, _ = _asked_commit(params.name, params.revision)
    listing = _resolve(name, commit, params.config)
    with contextlib.suppress(OSError, TypeError):  # as above, or an option that JSON has not
        write_json(_listing_file(params, commit), dataclasses.asdict(listing))
    return listing


def _resolve(name: str, commit: str, config: str | None) -> _Listing:
    """The files as `datasets` finds them, by the data set's card or its files' names."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    from stages.download.transfer import HubFile

    # In a cache that holds nothing, it cannot fall back on another commit when the hub fails.
    with tempfile.TemporaryDirectory() as nothing:
        builder = _datasets().load_dataset_builder(
            # The long form of the name is never taken for a folder that happens to be here.
            f"hf://datasets/{name}",
            config,
            revision=commit,
            cache_dir=nothing,
        )
    root = f"hf://datasets/{name}@{commit}/"
    paths = {
        str(split): [url.removeprefix(root) for url in urls]
        for split, urls in builder.config.data_files.items()
    }
    found: dict[str, HubFile] = {}
    wanted = sorted({path for in_split in paths.values() for path in in_split})
    for start in range(0, len(wanted), PATHS_PER_REQUEST):
        for entry in HfApi().get_paths_info(
            name, wanted[start : start + PATHS_PER_REQUEST], revision=commit, repo_type="dataset"
        ):
            if isinstance(entry, RepoFile):
                digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
                if not _DIGEST.fullmatch(digest):  # it will name a file
                    raise AccessError(f"data.name: the hub states no digest of {name}/{entry.path}")
                found[entry.path] = HubFile(entry.path, entry.size, digest)
    standard = type(builder.config)()
    options = {
        field.name: value
        for field in dataclasses.fields(builder.config)
        if field.name not in _NOT_OPTIONS
        and (value := getattr(builder.config, field.name)) != getattr(standard, field.name)
    }
    return _Listing(
        name,
        commit,
        type(builder).__module__.split(".")[-1],
        options,
        {split: [found[path] for path in in_split] for split, in_split in paths.items()},
    )


# --- their rows ---


def _split_rows(listing: _Listing, params: DataParams) -> Rows:
    """Rows of ``params.split``, which may name slices and sums of splits as `datasets` has them."""
    split = "+".join(listing.splits) if params.split == "all" else params.split
    rows = functools.partial(_rows, listing, columns=params.reads)
    if split in listing.splits:
        yield from rows(split)
        return
    # Only shares and places counted from the end need to know how many rows there are.
    counts = re.search(r"%|[\[:]\s*-", split) is not None
    lengths = _Lengths(
        listing.splits, lambda name: sum(1 for _ in rows(name)) if counts else sys.maxsize
    )
    for part in _datasets().ReadInstruction.from_spec(split).to_absolute(lengths):
        yield from itertools.islice(rows(part.splitname), part.from_, part.to)


class _Lengths(Mapping[str, int]):
    """How many rows each split has, counted when it is asked for."""

    def __init__(self, splits: Mapping[str, object], count: Callable[[str], int]) -> None:
        self._splits, self._count = splits, functools.cache(count)

    def __getitem__(self, split: str) -> int:
        return self._count(split)

    def __contains__(self, split: object) -> bool:
        return split in self._splits

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)


def _rows(listing: _Listing, split: str, columns: Collection[str]) -> Rows:
    """Rows of a whole split; the progress is that of files which are not here yet."""
    from stages.download.transfer import be_patient, cached, fetch

    be_patient()
    name, commit, files = listing.name, listing.commit, listing.splits[split]
    missing = sum(file.size for file in files if cached(name, commit, file) is None)
    with contextlib.ExitStack() as stack:
        bar = Progress(f"download: {name}", "byte", missing) if missing else None
        update = stack.enter_context(bar).update if bar else lambda count: None
        fetched = ((file, fetch(name, commit, file, update)) for file in files)
        if listing.is_read_here(split):
            for file, local in fetched:
                yield from _file_rows(listing, file, local, columns)
        else:
            paths = [str(local) for _, local in fetched]
            table = _datasets().load_dataset(
                listing.loader, data_files={split: paths}, split=split, **listing.options
            )
            # ``columns`` may name a field of a column, as pyarrow does: column.field
            wanted = {part for c in columns for part in (c, c.partition(".")[0])}
            if used := [column for column in table.column_names if column in wanted]:
                table = table.select_columns(used)
            parts = table.with_format("arrow").iter(READ_ROWS)
            batches = (batch for part in parts for batch in part.to_batches())
            rows = itertools.chain.from_iterable(map(batch_rows, batches))
            for number, row in enumerate(rows, 1):
                yield f"{name}:{split}:{number}", row


def _file_rows(listing: _Listing, file: "HubFile", local: Path, columns: Collection[str]) -> Rows:
    where = f"{listing.name}/{file.path}"
    try:
        for number, row in rows_of(local, columns):
            yield f"{where}:{number}", row
    except DataError as error:  # names the file by its place in the cache
        raise DataError(str(error).replace(str(local), where)) from None


# --- what goes wrong ---


def _gated(name: str, error: BaseException | None) -> AccessError:
    said = " ".join((getattr(error, "server_message", None) or "").split())
    return AccessError(
        f"data.name: {name} is gated: accept its terms at "
        f"https://huggingface.co/datasets/{name} and set HF_TOKEN in the environment"
        + (f" (the hub says: {said[:200]})" if said else "")
    )


def _unreachable(name: str, error: BaseException) -> AccessError:
    return AccessError(
        f"data.name: the hub cannot be asked for {name}: {_one_line(error)} (HF_HUB_OFFLINE=1 "
        "takes the copy in the cache)"
    )


def _failure(params: DataParams, error: Exception) -> Exception:
    """What to raise when a data set that the hub knows cannot be read because of ``error``.

    The types in its chain of causes go by name: they come from several libraries.
    """
    name = params.name
    chain: list[BaseException] = [error]
    while (cause := _cause(chain[-1])) and cause not in chain:
        chain.append(cause)
    for link in chain:
        if isinstance(link, StageError):
            return link
        if isinstance(link, OSError) and link.errno in DISK_ERRNOS:
            return link  # a full disk has its own exit code
    kinds = {kind.__name__: link for link in chain for kind in type(link).__mro__}
    text = ": ".join(dict.fromkeys(_one_line(link) for link in chain))

    # Its commit was found: "not found" now says that its files are kept from us.
    if kinds.keys() & {"GatedRepoError", "DatasetNotFoundError"}:
        return _gated(name, kinds.get("GatedRepoError"))
    if text.startswith(_CONFIG_ERRORS):
        return SettingsError(f"data.config: '{params.config}' for {name}: {text}")
    if text.startswith(_SPLIT_ERRORS):
        return SettingsError(f"data.split: '{params.split}' for {name}: {text}")
    if "GaveUp" in kinds:
        return _unreachable(name, kinds["GaveUp"])
    if kinds.keys() & _NETWORK_ERRORS:
        return AccessError(f"data.name: {name} could not be downloaded: {text}")
    if text.startswith(_SCRIPT):
        text += " (is there a data.revision refs/convert/parquet?)"
    return DataError(f"data.name: {name} could not be read: {text}")


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _one_line(error: BaseException) -> str:
    return _QUERY.sub(r"\1", " ".join(str(error).split()))[:300] or type(error).__name__
