"""The library's packages import one another in one direction, and the plan stays light (docs/decisions/0019)."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"
LIBRARY = SCRIPTS / "saelineage"
ORDER = (
    *("errors", "files", "precision", "transfers", "foreign", "plan", "corpora", "tokens", "chat", "models"),
    *("activations", "saes", "features", "crosscoders", "correlations", "lineage", "labels", "behaviour", "report"),
    "notebook",
)
"""Packages and top-level modules; each imports only itself and what comes before it."""
HEAVY = {"torch", "numpy", "pandas", "transformers"}


def package_of(path: Path) -> str:
    """`saes` for saelineage/saes/sae.py, `tokens` for saelineage/tokens.py."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imported_packages(path: Path) -> Iterator[str]:
    """The packages of the library that a module imports anywhere, under TYPE_CHECKING and in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import at line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("saelineage."))


def modules() -> list[Path]:
    return [path for path in sorted(LIBRARY.rglob("*.py")) if path != LIBRARY / "__init__.py"]


def test_an_init_file_holds_a_docstring_only():
    paths = sorted(LIBRARY.rglob("__init__.py"))
    assert {path.parent for path in paths} == {path.parent for path in LIBRARY.rglob("*.py")}
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        assert len(tree.body) == 1, path


def test_every_package_has_its_place():
    assert {package_of(path) for path in modules()} == {*ORDER, "jobs"}


def test_imports_run_one_way():
    backward = [
        f"{path.relative_to(LIBRARY)} imports {package}"
        for path in modules()
        if package_of(path) != "jobs"
        for package in imported_packages(path)
        if package not in ORDER[: ORDER.index(package_of(path)) + 1]
    ]
    assert backward == []  # an import of jobs is among them, because jobs is not in the order


def test_a_backward_import_is_found(tmp_path: Path):
    path = tmp_path / "module.py"
    path.write_text(
        "import saelineage.report.page\n"
        "if TYPE_CHECKING:\n    from saelineage import jobs\n"
        "def work():\n    from saelineage.labels.labels import describe\n"
    )
    assert sorted(imported_packages(path)) == ["jobs", "labels", "report"]


def test_what_snakemake_imports_at_its_start_loads_nothing_heavy():
    plan = [f"saelineage.plan.{path.stem}" for path in (LIBRARY / "plan").glob("*.py") if path.stem != "__init__"]
    rules = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "rules").glob("*.smk")))
    lines = [*(f"import {name}" for name in plan), *re.findall(r"^from saelineage.*$", rules, flags=re.MULTILINE)]
    code = "\n".join([*lines, "import sys", f"print(sorted({HEAVY!r} & set(sys.modules)))"])
    result = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[]", result.stderr
