"""Wildcards and input files of a job, with the interface that Snakemake's have."""

from collections.abc import Sequence


class Wildcards:
    """Values by name."""

    def __init__(self, **values: str):
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> str:
        raise AttributeError(name)  # of a name without a value


class InputFiles(list):
    """A list of all files, with names for its parts."""

    def __init__(self, **parts: Sequence[str]):
        super().__init__(path for part in parts.values() for path in part)
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Sequence[str]:
        raise AttributeError(name)  # of a name without files
