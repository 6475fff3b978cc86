"""A digest of the code that a rule runs, so that Snakemake can track code by content.

Snakemake sees the script file only, not what it imports. `code_digest` follows the imports of a script through this
library and hashes what the code means: comments, docstrings and layout are left out. What was found in a file is kept
by its content (`KEPT`), for every job on a cluster reads the rules again, and parsing all files takes most of a second.
"""

import ast
import hashlib
import json
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from saelineage.files import write_json

KEPT = Path(".snakemake", "saelineage", "code.json")
MOST_KEPT = 2000
SCRIPTS = Path(__file__).resolve().parent.parent
PACKAGE = Path(__file__).resolve().parent.name


def code_digest(script: str) -> str:
    """Hex sha256 (16 digits) over `workflow/scripts/{script}.py` and every library module it reaches.

    The digest is that of the syntax tree, so it may differ between Python's minor versions.

    Raises:
        FileNotFoundError: if there is no such script.
    """
    digest, n_kept = hashlib.sha256(), len(_kept())
    for path in sorted(reached_files(SCRIPTS / f"{script}.py")):
        digest.update(f"{path.relative_to(SCRIPTS).as_posix()} {_read(path)[0]}\n".encode())
    if len(_kept()) > n_kept:
        with suppress(OSError):  # of a run that may only be looked at
            write_json(KEPT, _kept())
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
    """The digest of the file's syntax tree without docstrings, and the library files it imports."""
    content = path.read_bytes()
    key = hashlib.sha256(b"%d.%d " % sys.version_info[:2] + content).hexdigest()
    if key not in _kept():
        _kept()[key] = _parsed(content)
    digest, modules = _kept()[key]
    return digest, tuple(sorted({file for name in modules for file in _module_files(name)}))


@cache
def _kept() -> dict[str, list]:
    """What earlier processes found, by the content of files; nothing where that is damaged, or much of it is old."""
    try:
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        whole = all(isinstance(digest, str) and isinstance(modules, list) for digest, modules in kept.values())
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return kept if whole and len(kept) < MOST_KEPT else {}


def _parsed(content: bytes) -> list:
    """Hex sha256 of the syntax tree without docstrings, and the names that may be modules of this library."""
    tree = ast.parse(content)
    modules = sorted({name for node in ast.walk(tree) for name in _imported_names(node)})
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return [hashlib.sha256(ast.dump(tree).encode()).hexdigest(), modules]


def _imported_names(node: ast.AST) -> list[str]:
    """What an import names of this library (`from saelineage.saes import x`, `import saelineage.saes`)."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    else:
        return []
    return [name for name in names if name.split(".")[0] == PACKAGE]


def _module_files(name: str) -> set[Path]:
    """The module's file and the `__init__.py` of every package on the way to it."""
    parts = name.split(".")
    candidates = [SCRIPTS.joinpath(*parts).with_suffix(".py")]
    candidates += [SCRIPTS.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return {file for file in candidates if file.is_file()}
