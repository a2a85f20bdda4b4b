"""``python -m stages.recipes [NAME [options of dvc exp run]]``: lists the recipes, or runs one."""

import os
import shlex
import sys

from stages.errors import SettingsError, run
from stages.recipes.book import names, options_of, summary

USAGE = (
    "\nrun one:      python -m stages.recipes NAME [further options of `dvc exp run`]"
    "\nsee it:       python -m stages.recipes NAME --print"
    "\nits cost:     python -m stages.plan --recipe NAME"
)


def main() -> None:
    """Replaces this process by ``dvc exp run`` with the recipe's options. Raises SettingsError."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, names()))
        for name in names():
            print(f"{name:{width}}  {summary(name)}")
        print(USAGE)
        return
    name, *further = arguments
    command = ["dvc", "exp", "run"]
    for option in options_of(name):
        command += ["-S", option]
    if "--print" in further:
        print(shlex.join(command + [option for option in further if option != "--print"]))
        return
    sys.stdout.flush()
    try:
        os.execvp(command[0], command + further)
    except FileNotFoundError:
        raise SettingsError("dvc is not on the PATH: activate the environment it is in") from None


if __name__ == "__main__":
    run("recipes", main)
