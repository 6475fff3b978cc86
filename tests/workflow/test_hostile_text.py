"""Hostile text in a corpus, from its file to the page: all of it is kept, none of it does anything."""

from html.parser import HTMLParser

import numpy as np

from saelineage.corpora.documents import read_split, without_lone_surrogates
from saelineage.files.atomic import read_json
from saelineage.tokens import TokenRows, load_tokenizer
from tests.hostile import CALL, LONG_LINE, PRODUCT, SURROGATES, TEXTS
from tests.workflow.conftest import Checkout


class Elements(HTMLParser):
    """Elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    @property
    def dangers(self) -> list[tuple[str, str, str]]:
        """Attributes that run something, and elements that only hostile text has."""
        triples = [(tag, name, value) for tag, attributes in self.elements for name, value in attributes.items()]
        running = [
            (tag, name, value)
            for tag, name, value in triples
            if name.startswith("on") or value.strip().startswith("javascript:")
        ]
        foreign = [(tag, "", "") for tag, _ in self.elements if tag in ("base", "extra")]
        return running + foreign


def test_dangers_are_found_where_text_is_not_escaped():
    page = Elements("<p>" + " ".join(TEXTS.values()) + "</p>")
    found = {(tag, name) for tag, name, _ in page.dangers}
    assert found == {("img", "onerror"), ("svg", "onload"), ("a", "href"), ("base", ""), ("extra", "")}
    assert [script.strip() for script in page.scripts] == [CALL, CALL]


def test_every_hostile_text_is_kept_and_stands_in_the_probe(finished: Checkout):
    run = finished.folder / "results" / "tiny"
    counts = read_json(run / "corpora/english/counts.json")
    assert (counts["surrogates"], counts["empty"], counts["duplicates"]) == (2, 0, 0)  # one in either split
    ids = np.asarray(TokenRows(run / "tokens/english/probe.npy").ids)[:, 1:].ravel().tolist()
    probe = load_tokenizer(run / "tokenizer").decode(ids, skip_special_tokens=False)
    documents = {split: "\n".join(read_split(run / f"corpora/english/{split}.parquet")) for split in ("probe", "train")}
    for text in map(without_lone_surrogates, (TEXTS | SURROGATES).values()):
        assert text in probe
        assert text in documents["probe"]
        assert text in documents["train"]
    assert LONG_LINE in documents["probe"]


def test_hostile_text_does_nothing_in_any_page(finished: Checkout):
    pages = sorted((finished.folder / "results" / "tiny" / "report").rglob("*.html"))
    assert "index.html" in [path.name for path in pages]
    for path in pages:
        text = path.read_text(encoding="utf-8")
        page = Elements(text)
        assert page.dangers == [], path
        assert CALL not in [script.strip() for script in page.scripts], path
        assert str(PRODUCT[0] * PRODUCT[1]) not in text, path
        assert "\0" not in text, path
