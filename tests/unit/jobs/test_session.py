"""What is said at the end of a run: where the page is."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from saelineage.jobs.session import succeed
from saelineage.plan.plan import Plan
from tests.unit.plan.lineages import diamond

MAIN, JOB = SimpleNamespace(is_main_process=True), SimpleNamespace(is_main_process=False)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_that_made_its_page_ends_with_the_path(capsys: pytest.CaptureFixture):
    run = Plan(diamond())
    succeed(MAIN, run)  # such as of one SAE
    assert capsys.readouterr().err == ""
    Path("results/tiny/report").mkdir(parents=True)
    Path("results/tiny/report/index.html").touch()
    succeed(JOB, run)
    assert capsys.readouterr().err == ""
    succeed(MAIN, run)
    assert "results/tiny/report/index.html" in capsys.readouterr().err
