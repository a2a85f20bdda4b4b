"""Sources of rows: the embedded data set, local files and the Hugging Face hub."""

import importlib.resources
import json
from pathlib import Path

from stages.download.hub import hub_commit, hub_parts, hub_rows
from stages.download.params import EMBEDDED, EMBEDDED_MARKER, LOCAL, DataParams
from stages.download.readers import parts_of_path, read_path
from stages.download.rows import Part, Rows
from stages.errors import AccessError, DataError
from stages.files import sha256_file


def open_source(params: DataParams) -> Rows:
    """The rows of the source that ``params`` names, in its own order."""
    if params.name == EMBEDDED:
        return embedded_rows()
    if params.name == LOCAL:
        return read_path(Path(params.path), params.reads, params.split, params.validation_split)
    return hub_rows(params)


def open_parts(params: DataParams) -> list[Part]:
    """The rows of ``open_source`` in parts that can be read apart, as files are."""
    if params.name == EMBEDDED:
        return [embedded_rows]
    if params.name == LOCAL:
        return parts_of_path(Path(params.path), params.reads, params.split, params.validation_split)
    return hub_parts(params)


def describe_source(params: DataParams) -> dict[str, str]:
    """What ``params`` names, for the data report: with the version or commit that it stands for.

    DVC records the contents of a local file or folder.
    """
    if params.name == EMBEDDED:
        return {"name": EMBEDDED, "version": _marker()["version"]}
    if params.name == LOCAL:
        return {"name": LOCAL}
    return {"name": params.name, "revision": hub_commit(params.name, params.revision)}


def open_validation(params: DataParams) -> Rows | None:
    """The rows of the source's own validation split, if ``params`` names one."""
    of_validation = for_validation(params)
    return None if of_validation is None else open_source(of_validation)


def for_validation(params: DataParams) -> DataParams | None:
    """``params`` for the source's own validation split, if they name one."""
    if params.validation_split is None:
        return None
    return params.model_copy(update={"split": params.validation_split})


def embedded_rows() -> Rows:
    """Chats of the PyPI package ``chitchat-dataset`` as it has them: turns of one sender each.

    Raises AccessError when the package is not installed, DataError when it is another version.
    """
    marker = _marker()
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


def _marker() -> dict[str, str]:
    marker: dict[str, str] = json.loads(Path(EMBEDDED_MARKER).read_text(encoding="utf-8"))
    return marker
