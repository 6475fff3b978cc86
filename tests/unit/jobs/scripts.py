"""A stand-in for the object that Snakemake gives a script."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace


class Named(dict):
    """Snakemake's params and wildcards: items by name, and as attributes."""

    __getattr__ = dict.__getitem__


def script_object(
    log: Path | str, inputs: Sequence[Path | str] = (), outputs: Sequence[Path | str] = (), **params: object
) -> SimpleNamespace:
    """The `snakemake` of a script in the run `demo`."""
    return SimpleNamespace(
        log=[str(log)],
        input=inputs,
        output=outputs,
        params=Named(code="c0de", **params),
        wildcards=Named(),
        config={"run": "demo"},
        threads=2,
    )
