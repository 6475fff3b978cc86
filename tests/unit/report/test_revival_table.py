"""The table of revived models, and what is said of it."""

import pandas as pd

from saelineage.report.sentences import revived
from saelineage.report.tables import revival_table


def row(kind: str, returned: float | None, **changes: object) -> dict:
    """Of 40 gone features a share has returned in the model `back` or in one of its controls; 0.9 of 100 are kept."""
    n = 0 if returned is None else 40
    shares = {"returned": returned, "returned_n": n, "returned_interval": None if returned is None else [0.1, 0.9]}
    kept = {"kept": 0.9, "kept_n": 100, "kept_interval": [0.8, 0.95]}
    edge = {"parent": "base", "child": "lua", "model": "back", "group": "gone", "kind": kind}
    return edge | shares | kept | changes


def table_of(returned: float | None, beyond: int, short: int, p: float, sure: float | None = None) -> pd.DataFrame:
    """The table of one revived model, with a share of features that are gone for sure, if there are any."""
    paired = {"beyond": beyond, "short": short, "p": p, "latents": [3, 17]}
    of_groups = {"headline": sure, "gone": returned}
    rows = [
        entry | {"group": group}
        for group, share in of_groups.items()
        for entry in (
            row("revived", share, **paired),
            row("continued", None if share is None else 0.1),
            row("unchanged", None if share is None else 0.05),
        )
    ]
    return revival_table({"revivals": rows})


def test_every_revived_model_and_control_is_a_row_with_its_shares():
    table = table_of(0.5, 18, 2, 0.0004)
    assert table["group"].tolist() == ["headline"] * 3 + ["gone"] * 3
    table = table[table["group"] == "gone"]
    assert table["kind"].tolist() == ["revived", "continued", "unchanged"]
    first = table.iloc[0]
    assert (first["returned"], first["returned_n"], first["returned_low"], first["returned_high"]) == (
        0.5,
        40,
        0.1,
        0.9,
    )
    assert (first["kept"], first["kept_n"], first["latents"]) == (0.9, 100, "3 17")
    assert table["latents"].isna().tolist() == [False, True, True]


def test_a_run_without_revived_models_has_a_table_without_rows():
    assert revival_table({}).empty
    assert revived(revival_table({})) == []


def test_more_return_only_if_the_sign_test_says_so():
    (surely,) = revived(table_of(0.5, 18, 2, 0.0004))
    assert (
        "50.0 % are found again in back, 10.0 % in the continued lua and 5.0 % in the unchanged lua."
        in surely.replace("\u00a0", " ")
    )
    assert "More return than" in surely
    assert (
        "18 are found in back and not in the continued model, 2 the other way round (sign test over features, p < "
        "0.001)" in surely
    )
    (unsure,) = revived(table_of(0.3, 12, 4, 0.077))
    assert "It cannot be told whether more return than" in unsure
    assert "p = 0.077" in unsure
    (fewer,) = revived(table_of(0.1, 2, 18, 0.0004))
    assert "Fewer return than" in fewer


def test_features_that_are_gone_for_sure_are_told_of_where_there_are_any():
    (said,) = revived(table_of(0.5, 18, 2, 0.0004, sure=0.8))
    assert said.replace("\u00a0", " ").startswith("Of 40 features of base that are gone in lua for sure, 80.0 %")
    assert "for sure" not in revived(table_of(0.5, 18, 2, 0.0004))[0]


def test_where_nothing_is_gone_nothing_can_return():
    (said,) = revived(table_of(None, 0, 0, 1.0))
    assert said == "lua lacks no testable feature of base, so none can return in back."
