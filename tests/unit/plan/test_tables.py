"""Instruments and ways of making a model have one table each, which schema, documents and sentences follow."""

import re
from pathlib import Path

import saelineage
from saelineage.plan.config import read_schema
from saelineage.plan.crosscoders import CROSSCODER
from saelineage.plan.graph import MODEL_KINDS
from saelineage.plan.instruments import INSTRUMENTS, instrument
from saelineage.plan.plan import Plan
from tests.unit.plan.lineages import diamond

ROOT = Path(saelineage.__file__).parents[3]
SCHEMA = read_schema(ROOT / "config" / "config.schema.yaml")
EVERY_INSTRUMENT = [*INSTRUMENTS, CROSSCODER]


def test_the_schema_lists_every_instrument_and_its_description_explains_each():
    schema = SCHEMA["properties"]["lineage"]["properties"]["instruments"]
    assert schema["items"]["enum"] == EVERY_INSTRUMENT
    assert re.findall(r"(\w+): ", schema["description"]) == EVERY_INSTRUMENT
    assert set(schema["default"]) <= set(INSTRUMENTS)


def test_the_page_on_reading_has_one_row_for_each_instrument():
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| `lineage\.instruments` \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert sorted(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == sorted(EVERY_INSTRUMENT)
    assert table.count("\n") == len(EVERY_INSTRUMENT)


def test_phrases_of_an_instrument_complete_a_sentence():
    # "The child's SAE {child_sae}. No-change control: {no_change}."
    phrases = [phrase for chosen in INSTRUMENTS.values() for phrase in (chosen.child_sae, chosen.no_change)]
    assert [phrase for phrase in phrases if not phrase[0].islower() or phrase.endswith(".")] == []


def test_every_instrument_and_every_budget_has_a_pair_and_a_control_for_each_edge():
    config = diamond(*INSTRUMENTS)
    config["lineage"]["budgets"] = [500]
    plan = Plan(config)
    assert plan.comparisons.instruments == [*INSTRUMENTS, "anchored@500"]
    assert instrument("anchored@500") == INSTRUMENTS["anchored"]._replace(budget="@500")
    for name in plan.comparisons.instruments:
        pairs = [plan.comparisons.edge_pair(name, edge) for edge in plan.graph.edges]
        controls = [plan.comparisons.no_change_pairs(name, edge.parent)[0] for edge in plan.graph.edges]
        assert all(parent.model != child.model for parent, child in pairs)
        assert all(first.model == second.model for first, second in controls)
        assert [control[0] for control in controls] == [pair[0] for pair in pairs]


def test_the_schema_has_every_way_of_making_a_model():
    assert list(SCHEMA["$defs"]["model"]["properties"]) == list(MODEL_KINDS)
