"""Which modules of the project a stage imports, found by reading its source."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("stages", "model")


def _module_file(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def _is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def _imports(node: ast.AST) -> set[str]:
    """Names of imported modules anywhere below ``node``, those for type checkers left out."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            found.update(alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            found.add(child.module)
            found.update(f"{child.module}.{alias.name}" for alias in child.names)
        found |= _imports(child)
    return found


def _has_code(file: Path) -> bool:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)) for n in body)


def closure(module: str, leave_out: frozenset[str] = frozenset()) -> set[str]:
    """Files (relative to the root) that ``python -m module`` can import, transitively.

    Files of ``leave_out`` and what only they import don't count; nor do files without code.
    """
    todo, seen = [module], set()
    files: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name.split(".")[0] not in PACKAGES:
            continue
        seen.add(name)
        file = _module_file(name)
        if file is None:  # a name imported from a module, not a module
            continue
        relative = file.relative_to(ROOT).as_posix()
        if relative in leave_out:
            continue
        if _has_code(file):
            files.add(relative)
        todo += _imports(ast.parse(file.read_text(encoding="utf-8")))
    return files


def reads_sections(files: set[str]) -> set[str]:
    """Sections of params.yaml that these files read: the first arguments of ``read(…)``."""
    sections = set()
    for name in files:
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "read"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                sections.add(str(node.args[0].value))
    return sections
