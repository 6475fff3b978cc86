"""The notebook, run from beginning to end on the tiny run, without Jupyter."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import plotly.graph_objects
import pytest

from tests.workflow.conftest import ROOT, Checkout

NOTEBOOK = ROOT / "notebooks/open_a_run.ipynb"
ABSOLUTE_PATH = re.compile(r"(?:file://|(?<![\w<.:/]))/[\w.-]+/[\w./-]+")
"""A path from the root with at least two parts, of whatever machine; not the end of a tag or of an address."""
LARGEST = 300_000
"""Bytes of a notebook with its outputs, so that pages that show it load."""


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def texts_of(outputs: object) -> Iterator[str]:
    """All texts of outputs, but for pictures."""
    if isinstance(outputs, str):
        yield outputs
    elif isinstance(outputs, dict):
        for kind, value in outputs.items():
            if not kind.startswith("image/"):
                yield from texts_of(value)
    elif isinstance(outputs, list):
        for value in outputs:
            yield from texts_of(value)


def run_cells(sources: list[str]) -> list[object]:
    """Run cells in one namespace; return the value of each cell's last line, or None if that is a statement."""
    namespace: dict = {}
    values = []
    for source in sources:
        *statements, last = ast.parse(source).body
        is_value = isinstance(last, ast.Expr)
        module = ast.Module(body=statements if is_value else [*statements, last], type_ignores=[])
        exec(compile(module, "<cell>", "exec"), namespace)  # noqa: S102 - the repository's own notebook
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace) if is_value else None  # noqa: S307
        values.append(value)
    return values


def test_notebooks_hold_the_outputs_of_one_run_from_top_to_bottom_and_no_absolute_paths():
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert paths == [NOTEBOOK]
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    cells = code_cells(NOTEBOOK)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [len(cell.outputs) for cell in cells] == [0, *[1] * (len(cells) - 1)]  # the first one sets the folder
    assert NOTEBOOK.stat().st_size < LARGEST
    written = "\n".join(text for cell in cells for text in texts_of(cell.outputs))
    assert "Traceback" not in written
    assert "persist" in written
    assert ABSOLUTE_PATH.findall(written) == []
    assert ABSOLUTE_PATH.findall("read '/srv/runs/demo' or file:///srv/runs, see https://a.b/c/d</td>") == [
        "/srv/runs/demo",
        "file:///srv/runs",
    ]
    for cell in cells:
        assert not [text for text in ('"/', "'/", "~", ":\\") if text in cell.source]


def test_the_page_on_notebooks_opens_a_run_with_the_lines_of_the_notebook():
    (lines,) = [cell.source for cell in code_cells(NOTEBOOK) if "open_run(" in cell.source]
    assert lines in (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_the_notebook_shows_the_answer_of_a_finished_run(
    finished: Checkout, folder: str, monkeypatch: pytest.MonkeyPatch
):
    (finished.folder / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(finished.folder / folder)
    sources = [cell.source for cell in code_cells(NOTEBOOK)]
    assert sum(source.count("results/demo") for source in sources) == 1
    _, run, answer, figure, best = run_cells([source.replace("results/demo", "results/tiny") for source in sources])
    assert "'tiny'" in repr(run)
    assert isinstance(answer, pd.DataFrame)
    assert [edge.partition(" -> ")[0] for edge in answer.index] == ["base", "base", "left", "right"]
    (shown,) = [cell.outputs[0]["data"]["text/html"] for cell in code_cells(NOTEBOOK) if cell.source == "run.answer"]
    assert [name for name in answer.columns if f"<th>{name}</th>" not in shown] == []
    assert isinstance(figure, plotly.graph_objects.Figure)
    assert "base -> left" in figure.layout.title.text
    assert 0 < sum(len(trace.x) for trace in figure.data) <= 256  # 128 features on either side
    assert isinstance(best, pd.DataFrame)
    assert best["r"].is_monotonic_decreasing
    assert len(best) == 10
    assert best["fires_on"].map(len).between(1, 6).all()
