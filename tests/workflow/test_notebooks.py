"""The notebooks, run on the tiny run from beginning to end, without Jupyter."""

import ast
import sys
from pathlib import Path

import nbformat
import pandas as pd
import plotly.graph_objects
import pytest

from tests.workflow.conftest import ROOT, Checkout

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells_of(path: Path, kind: str = "code") -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def run_cells(sources: list[str]) -> list[object]:
    """Run cells one after the other in one namespace; what each one shows, the value of its last line."""
    namespace: dict = {}
    shown = []
    for source in sources:
        *statements, last = ast.parse(source).body
        is_shown = isinstance(last, ast.Expr)
        module = ast.Module(body=statements if is_shown else [*statements, last], type_ignores=[])
        exec(compile(module, "<cell>", "exec"), namespace)  # noqa: S102 - the repository's own notebook
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace) if is_shown else None  # noqa: S307
        shown.append(value)
    return shown


def test_there_is_a_notebook():
    assert [path.name for path in NOTEBOOKS] == ["open_a_run.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_outputs_and_no_paths_of_one_machine(path: Path):
    nbformat.validate(nbformat.read(path, as_version=4))
    for cell in cells_of(path):
        assert (cell.outputs, cell.execution_count) == ([], None)
        assert not [text for text in ('"/', "'/", "~", ":\\") if text in cell.source]


def test_five_lines_open_a_run_and_are_those_of_the_readme():
    (lines,) = [cell.source for cell in cells_of(ROOT / "notebooks/open_a_run.ipynb") if "open_run(" in cell.source]
    assert len([line for line in lines.splitlines() if line]) == 5
    assert lines in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_the_notebook_shows_the_answer_of_a_finished_run(
    finished: Checkout, folder: str, monkeypatch: pytest.MonkeyPatch
):
    (finished.folder / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(finished.folder / folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sources = [cell.source for cell in cells_of(ROOT / "notebooks/open_a_run.ipynb")]
    assert sum(source.count("results/demo") for source in sources) == 1
    shown = run_cells([source.replace("results/demo", "results/tiny") for source in sources])
    _, edges, figure, best = shown
    assert isinstance(edges, pd.DataFrame)
    assert edges["parent"].tolist() == ["base", "base", "left", "right"]
    assert isinstance(figure, plotly.graph_objects.Figure)
    assert "base -> left" in figure.layout.title.text
    assert 0 < sum(len(trace.x) for trace in figure.data) <= 256  # 128 features on either side
    assert best["r"].is_monotonic_decreasing
    assert len(best) == 10
    assert best["fires_on"].map(len).between(1, 6).all()
