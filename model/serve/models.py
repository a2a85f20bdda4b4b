"""The folders of the command line, and the names that their models go by."""

from collections.abc import Sequence
from pathlib import Path


def named_folders(arguments: Sequence[str]) -> dict[str, Path]:
    """Folders by name, from FOLDER or NAME=FOLDER.

    Without a NAME a model is named as the folder's last part. Raises ValueError for two of one
    name.
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        folder = Path(rest)
        # A folder may have an equals sign in its own name.
        if not equals or Path(argument).exists():
            folder = Path(argument)
            name = folder.resolve().name
        if not name or not name.isprintable():
            raise ValueError(f"'{argument}' names no model: write NAME=FOLDER")
        if name in folders:
            raise ValueError(
                f"two models are called {name}: name them, as in first={folders[name]} "
                f"second={folder}"
            )
        folders[name] = folder
    return folders
