"""The benchmark of the page writes a whole page of drawn features; browsers read it in its own run."""

from argparse import Namespace
from pathlib import Path

from benchmarks.report import LINEAGE, draw_run, written


def test_a_drawn_run_has_a_page_with_the_features_of_every_model(tmp_path: Path):
    run = draw_run(Namespace(tokens=2_048, features_per_model=256, seed=0))
    figures = written(run, tmp_path, seed=0)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert figures
    assert "testable features of base" in page or "identified features of base" in page
    for model in LINEAGE:
        assert len(list((tmp_path / "data" / "mlp" / model).glob("*.js"))) == 3  # the table, and two chunks
