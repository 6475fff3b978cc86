"""A digest of a script's meaning, so that Snakemake reruns a job if and only if the meaning of its code changed.

Snakemake sees the script file, not its imports. `code_digest` follows the imports of a script through this library and
hashes syntax trees, without anything that decides no result:

- comments, layout, docstrings, annotations, log records and the texts of errors;
- names of modules: an import stands for the content of its module, so files can be moved and renamed;
- modules with `DECIDES_RESULTS = False`: logs, locks, manifests and the like;
- the version of Python: later ones add fields to syntax, empty where the code does not use them.

Digests of files are cached by the files' content (`KEPT`), because every job on a cluster reads the rules again and
parsing all files takes a second.
"""

import ast
import hashlib
import json
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from saelineage.files.atomic import sha256_file, sha256_json, write_json

DECIDES_RESULTS = False

KEPT = Path(".snakemake", "saelineage", "code.json")
FORMAT = "3"
"""Of the cached digests; those of other formats are not read."""
MOST_KEPT = 2000
SCRIPTS = Path(__file__).resolve().parents[2]
PACKAGE = __name__.partition(".")[0]
MARK = "DECIDES_RESULTS"
BLOCKS = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.For, ast.AsyncFor, ast.While),
    *(ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.ExceptHandler, ast.match_case, ast.Module),
)
"""Syntax that holds a list of statements as its body."""


class Meaning(NamedTuple):
    """The meaning of one file, without its imports."""

    decides_results: bool
    tree_sha256: str
    """Of the syntax tree, in which modules of this library are numbered in the order of their first use."""
    modules: list[str]
    """The names of those modules, in that order."""
    names: list[tuple[str, str, str]]
    """Names imported from modules of this library: (local name, name, module), sorted."""


def code_digest(script: str, *modules: str) -> str:
    """Hex sha256 (16 digits) of the meaning of `workflow/scripts/{script}.py` and the library behind it.

    Args:
        script: its name.
        *modules: of this library, which decide its results without being imported by it.

    Raises:
        FileNotFoundError: if there is no such script.
        ValueError: if modules import each other in a circle, or an import of this library cannot be followed.
    """
    n_kept = len(_kept())
    try:
        digest = _digest(SCRIPTS / f"{script}.py")
        if modules:
            digest = sha256_json([digest, *(_digest(_file_of(module)) for module in modules)])
    except RecursionError:
        raise ValueError(f"modules that '{script}.py' imports import each other in a circle; break it") from None
    if len(_kept()) > n_kept:
        with suppress(OSError):  # a read-only folder
            write_json(KEPT, _kept())
    return digest[:16]


def rules_digest() -> str:
    """Hex sha256 of the Snakefile and all rules, which decide the graph of jobs."""
    root = SCRIPTS.parent.parent
    return sha256_json([sha256_file(path) for path in [root / "Snakefile", *sorted((root / "rules").glob("*.smk"))]])


def imported_modules(meaning: Meaning) -> set[str]:
    """The modules of this library that a file imports, by their names."""
    return {*meaning.modules, *(module for _, _, module in meaning.names)}


@cache
def _digest(path: Path) -> str:
    """Hex sha256 of a file's meaning and of everything it imports; empty for a file that decides no result."""
    meaning = _read(path)
    if not meaning.decides_results:
        return ""
    digests = {name: _digest(_file_of(name)) for name in imported_modules(meaning)}
    modules = [digests[name] for name in meaning.modules]
    names = [[local, name, digests[module]] for local, name, module in meaning.names if digests[module]]
    return hashlib.sha256(json.dumps([meaning.tree_sha256, modules, names]).encode()).hexdigest()


@cache
def _read(path: Path) -> Meaning:
    """The meaning of a file, from the cache or by parsing it."""
    content = path.read_bytes()
    key = hashlib.sha256(f"{FORMAT} {sys.version_info[:2]} ".encode() + content).hexdigest()
    if key not in _kept():
        _kept()[key] = list(meaning_of(content))
    decides, tree, modules, names = _kept()[key]
    return Meaning(decides, tree, modules, [tuple(name) for name in names])


@cache
def _kept() -> dict[str, list]:
    """Meanings of files that earlier processes parsed, by content; empty if the cache is damaged or too large."""
    try:
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        whole = all(list(map(type, meaning)) == [bool, str, list, list] for meaning in kept.values())
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return kept if whole and len(kept) < MOST_KEPT else {}


def meaning_of(content: bytes) -> Meaning:
    """The meaning of a Python file."""
    tree = ast.parse(content)
    imports = _Imports()
    imports.visit(tree)
    stripped = _Stripped(imports.modules)
    stripped.visit(tree)
    digest = sha256_json(written(tree))
    # A module that is imported but never named is still run.
    used = [*stripped.order, *sorted(set(imports.modules.values()) - set(stripped.order))]
    return Meaning(not imports.is_marked, digest, used, sorted(imports.names))


def written(value: object) -> object:
    """A syntax tree as JSON: each node as its kind and those of its fields that are not empty, each constant as ASCII.

    `ast.dump` depends on Python's version: in 3.12 every function has `type_params`, which are empty in older code, and
    since 3.13 empty fields are left out.
    """
    if isinstance(value, list):
        return [written(item) for item in value]
    if isinstance(value, ast.Constant):
        return [type(value.value).__name__, ascii(value.value)]  # repr depends on the version of Unicode
    if isinstance(value, ast.AST):
        fields = {name: getattr(value, name, None) for name in value._fields}
        return [
            type(value).__name__,
            {name: written(field) for name, field in fields.items() if field not in (None, [])},
        ]
    return value


class _Imports(ast.NodeVisitor):
    """Collect a file's imports from this library."""

    def __init__(self) -> None:
        self.modules: dict[str, str] = {}
        """Modules by their local names."""
        self.names: list[tuple[str, str, str]] = []
        self.is_marked = False

    def visit_If(self, node: ast.If) -> None:
        for child in node.orelse if _is_type_checking(node) else ast.iter_child_nodes(node):
            self.visit(child)

    def visit_Assign(self, node: ast.Assign) -> None:
        named = [target.id for target in node.targets if isinstance(target, ast.Name)]
        self.is_marked |= MARK in named and isinstance(node.value, ast.Constant) and node.value.value is False

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if _is_own(alias.name):
                raise ValueError(f"write 'from {PACKAGE} import ...' instead of 'import {alias.name}'")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level:
            raise ValueError(f"write 'from {PACKAGE}. ...' instead of a relative import of '{node.module}'")
        if not _is_own(node.module or ""):
            return
        for alias in node.names:
            local, name = alias.asname or alias.name, f"{node.module}.{alias.name}"
            if _find(name):
                self.modules[local] = name
            elif _file_of(str(node.module)).name == "__init__.py":  # which holds a docstring only
                raise ValueError(f"'{name}' is imported, but there is no such module; correct the import")
            else:
                self.names.append((local, alias.name, str(node.module)))


class _Stripped(ast.NodeTransformer):
    """Remove everything that decides no result, and number modules in the order of their first use."""

    def __init__(self, modules: dict[str, str]) -> None:
        self.modules = modules
        self.order: list[str] = []

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, BLOCKS) and not node.body:
            node.body = [ast.Pass()]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if _is_type_checking(node):
            return [kept for statement in node.orelse if (kept := self.visit(statement)) is not None]
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        called = node.value.func if isinstance(node.value, ast.Call) else None
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "logger":
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return self.generic_visit(ast.Raise(exc=kind, cause=None))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if _is_own(node.module or "") else node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(arg=node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.modules:
            return node
        module = self.modules[node.id]
        if module not in self.order:
            self.order.append(module)
        return ast.Name(id=f"module {self.order.index(module)}", ctx=node.ctx)


def _is_type_checking(node: ast.If) -> bool:
    """`if TYPE_CHECKING:` runs nothing."""
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_own(module: str) -> bool:
    return module.split(".")[0] == PACKAGE


def _find(module: str) -> Path | None:
    """The file of a module or package of this library."""
    path = SCRIPTS.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _file_of(module: str) -> Path:
    file = _find(module)
    if file is None:
        raise ValueError(f"'{module}' is imported, but there is no such module under '{SCRIPTS}'; correct the import")
    return file
