"""The page of a run's jobs is one file in which hostile text stays text."""

import json
import re
from pathlib import Path

import pytest

from saelineage.jobs.code_digest import SCRIPTS
from show_jobs import show_jobs

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\u2028{{ 7*7 }}&amp;"


@pytest.fixture
def jobs() -> list[dict]:
    shared = {
        "stage": "saes",
        "wildcards": {},
        "seconds": 1.5,
        "max_rss_mb": None,
        "files": [{"path": HOSTILE, "bytes": None, "sha256": None, "temporary": False}],
        "bytes": 0,
        "inputs": [],
        "log": {"path": "a.log", "tail": HOSTILE},
        "provenance": {"settings": {HOSTILE: HOSTILE}},
    }
    return [
        {"id": 0, "rule": "train", "name": HOSTILE, "needs": [], "state": "missing", "why": [HOSTILE], **shared},
        {"id": 1, "rule": "train", "name": "lua", "needs": [0], "state": "fresh", "why": [], **shared},
        {"id": 2, "rule": "train", "name": "base", "needs": [], "state": "fresh", "why": [], **shared},
    ]


@pytest.fixture
def page(jobs: list[dict], tmp_path: Path) -> str:
    show_jobs("tiny", jobs, str(tmp_path / "jobs.html"))
    return (tmp_path / "jobs.html").read_text(encoding="utf-8")


def test_jobs_are_counted_by_state_and_listed_as_given(jobs: list[dict], page: str, tmp_path: Path):
    assert list(show_jobs("tiny", jobs, str(tmp_path / "again.html")).items()) == [("fresh", 2), ("missing", 1)]
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page  # equal jobs are equal pages
    assert "2 fresh, 1 missing." in page
    data = re.search(r'<script type="application/json" id="jobs-data">(.*?)</script>', page, flags=re.DOTALL)[1]
    assert json.loads(data) == jobs


def test_hostile_text_is_never_markup(page: str):
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img" not in page


def test_nothing_is_fetched(page: str):
    page = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    rest = re.sub(r'<script type="application/json".*?</script>|<svg.*?</svg>', "", page, flags=re.DOTALL)
    assert re.findall(r"""(?:src|href)=(?!["']data:)\S*|@import|url\(|https?:""", rest) == []
    assert "default-src 'none'" in page


def test_the_script_makes_no_markup_from_text_and_no_request():
    script = (SCRIPTS.parent / "report" / "jobs.js").read_text(encoding="utf-8")
    forbidden = ("innerHTML", "outerHTML", "insertAdjacent", "eval(", "fetch(", "XMLHttp", "http")
    assert [name for name in forbidden if name in script] == []
