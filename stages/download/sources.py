"""Sources of rows: the embedded data set, local files and the Hugging Face hub."""

import errno
import importlib.resources
import json
import logging
import sys
from pathlib import Path

from stages.download.params import EMBEDDED, EMBEDDED_MARKER, LOCAL, DataParams
from stages.download.readers import read_path
from stages.download.rows import Rows
from stages.errors import AccessError, DataError, SettingsError, StageError
from stages.files import sha256_file

HUB_SECONDS = 30.0  # for the hub's first answer

# How messages of the `datasets` library begin, and names of exceptions of those it is built on.
_CONFIG_ERRORS = ("BuilderConfig", "Config name is missing", "There are multiple")
_SPLIT_ERRORS = ("Unknown split", "Unrecognized instruction", "Percent slice", "Instruction ")
_NETWORK_ERRORS = {"HTTPError", "ConnectionError", "TimeoutError", "LocalEntryNotFoundError"}


def open_source(params: DataParams) -> Rows:
    """The rows of the source that ``params`` names, in its own order."""
    if params.name == EMBEDDED:
        return embedded_rows()
    if params.name == LOCAL:
        return read_path(Path(params.path), params.reads, params.split, params.validation_split)
    return hub_rows(params)


def open_validation(params: DataParams) -> Rows | None:
    """The rows of the source's own validation split, if ``params`` names one."""
    if params.validation_split is None:
        return None
    return open_source(params.model_copy(update={"split": params.validation_split}))


def embedded_rows() -> Rows:
    """Chats of the PyPI package ``chitchat-dataset`` as it has them: turns of one sender each.

    Raises AccessError when the package is not installed, DataError when it is another version.
    """
    marker = json.loads(Path(EMBEDDED_MARKER).read_text(encoding="utf-8"))
    try:
        file = Path(str(importlib.resources.files("chitchat_dataset") / marker["file"]))
        digest = sha256_file(file)
    except (ModuleNotFoundError, FileNotFoundError):
        raise AccessError(
            f"the package {marker['package']} is not installed: run `pip install -e .`"
        ) from None
    if digest != marker["sha256"]:
        raise DataError(
            f"{file} is not version {marker['version']} of {marker['package']} "
            f"(sha256 {digest[:12]}…): run `pip install --force-reinstall "
            f"{marker['package']}=={marker['version']}`"
        )
    for key, chat in json.loads(file.read_bytes()).items():
        yield f"{EMBEDDED}:{key}", {"chitchat": chat["messages"]}


def hub_rows(params: DataParams) -> Rows:
    """Rows of a data set on the Hugging Face hub, read through the ``datasets`` library.

    ``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` come from the environment.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        disable_progress_bars()
    # What goes wrong for good is told in one line at the end.
    datasets.logging.set_verbosity(logging.CRITICAL)
    huggingface_hub.logging.set_verbosity(logging.CRITICAL)

    name = params.name
    offline = datasets.config.HF_HUB_OFFLINE
    commit = params.revision if offline else _commit(name, params.revision)
    try:
        # The long form of the name is never taken for a folder that happens to be here.
        table = datasets.load_dataset(
            f"hf://datasets/{name}", params.config, split=params.split, revision=commit
        )
        # Where the hub fails, `datasets` falls back on whichever commit it has in its cache.
        cached = {Path(file["filename"]).parent.name for file in table.cache_files}
        if commit is not None and cached - {commit}:
            raise AccessError(
                f"data.revision: the cache holds another commit of {name} than '{commit}', which "
                "the hub does not give (offline, only a whole commit hash can be matched)"
            )
        for number, row in enumerate(table):
            yield f"{name}:{params.split}:{number}", row
    except StageError:
        raise
    except Exception as error:
        raise _load_failure(params, error) from error


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that ``revision`` names on the hub. Raises AccessError, SettingsError."""
    from huggingface_hub import HfApi, errors, get_token

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except errors.HFValidationError:
        raise SettingsError(
            f"data.name: '{name}' is neither {EMBEDDED}, {LOCAL} nor an id of the hub (owner/name)"
        ) from None
    except errors.RevisionNotFoundError:
        raise AccessError(f"data.revision: {name} has no revision '{revision}'") from None
    except errors.GatedRepoError:
        raise _gated(name) from None
    except Exception as error:  # those of the HTTP library, which changes between versions
        status = getattr(getattr(error, "response", None), "status_code", None)
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
        raise AccessError(
            f"data.name: the hub cannot be asked for {name}: {_one_line(error)} "
            "(HF_HUB_OFFLINE=1 takes the copy in the cache)"
        ) from None


def _gated(name: str) -> AccessError:
    return AccessError(
        f"data.name: {name} is gated: accept its terms at "
        f"https://huggingface.co/datasets/{name} and set HF_TOKEN in the environment"
    )


def _load_failure(params: DataParams, error: Exception) -> Exception:
    """What to raise when a data set that the hub knows fails to load with ``error``.

    The types in its chain of causes go by name: they come from several libraries.
    """
    name = params.name
    chain: list[BaseException] = [error]
    while (cause := _cause(chain[-1])) and cause not in chain:
        chain.append(cause)
    for link in chain:
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return link  # a full disk has its own exit code
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    text = ": ".join(dict.fromkeys(_one_line(link) for link in chain))

    # Its commit was found: "not found" now says that its files are kept from us.
    if kinds & {"GatedRepoError", "DatasetNotFoundError"}:
        return _gated(name)
    if text.startswith(_CONFIG_ERRORS):
        return SettingsError(f"data.config: '{params.config}' for {name}: {text}")
    if text.startswith(_SPLIT_ERRORS):
        return SettingsError(f"data.split: '{params.split}' for {name}: {text}")
    if kinds & _NETWORK_ERRORS or text.startswith("Couldn't find cache"):
        return AccessError(f"data.name: {name} could not be downloaded: {text}")
    return DataError(f"data.name: {name} could not be read: {text}")


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
