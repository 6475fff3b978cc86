"""Tables on disk."""

from pathlib import Path

import pandas as pd

from saelineage.files.atomic import atomic_path


def write_parquet(table: pd.DataFrame, path: Path | str) -> None:
    """Write a table as parquet, atomically and without its index."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
