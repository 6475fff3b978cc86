"""Tables are written completely or not at all."""

import pandas as pd
import pytest

from saelineage.files.tables import write_parquet


def test_a_table_comes_back_without_its_index(tmp_path):
    table = pd.DataFrame({"latent": [3, 1], "r": [0.5, float("nan")]}, index=[7, 9])
    write_parquet(table, tmp_path / "new" / "table.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "new" / "table.parquet"), table.reset_index(drop=True))


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "table.parquet"
    write_parquet(pd.DataFrame({"latent": [1]}), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"Conversion failed|Could not convert|tried to convert"):
        write_parquet(pd.DataFrame({"latent": [1, "two", object()]}), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.parquet"]
