"""A digest of the code that a rule runs, so that Snakemake can track code by content.

Snakemake sees the script file only, not what it imports. `code_digest` follows the imports of a script through this
library and hashes what the code means: comments, docstrings and layout are left out.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
PACKAGE = Path(__file__).resolve().parent.name


def code_digest(script: str) -> str:
    """Hex sha256 (16 digits) over `workflow/scripts/{script}.py` and every library module it reaches.

    The digest is that of the syntax tree, so it may differ between Python's minor versions.

    Raises:
        FileNotFoundError: if there is no such script.
    """
    digest = hashlib.sha256()
    for path in sorted(reached_files(SCRIPTS / f"{script}.py")):
        digest.update(path.relative_to(SCRIPTS).as_posix().encode())
        digest.update(_read(path)[0].encode())
    return digest.hexdigest()[:16]


def reached_files(script: Path) -> set[Path]:
    """`script` and the library files it imports, directly or through others."""
    reached, waiting = set(), [script]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(_read(path)[1])
    return reached


@cache
def _read(path: Path) -> tuple[str, tuple[Path, ...]]:
    """The file's syntax tree as text, without docstrings, and the library files it imports."""
    tree = ast.parse(path.read_bytes())
    imported = tuple(sorted(file for node in ast.walk(tree) for file in _imported_files(node)))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree), imported


def _imported_files(node: ast.AST) -> set[Path]:
    """Files of this library that an import names (`from saelineage.saes import x`, `import saelineage.saes`)."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    else:
        return set()
    return {file for name in names if name.split(".")[0] == PACKAGE for file in _module_files(name)}


def _module_files(name: str) -> set[Path]:
    """The module's file and the `__init__.py` of every package on the way to it."""
    parts = name.split(".")
    candidates = [SCRIPTS.joinpath(*parts).with_suffix(".py")]
    candidates += [SCRIPTS.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return {file for file in candidates if file.is_file()}
