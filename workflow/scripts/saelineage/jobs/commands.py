"""Snakemake's command line for this run, so that commands in messages can be copied."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from saelineage.errors import InputError

DECIDES_RESULTS = False

VENV = "~/saelineage-venv"
OPTIONS = "SAELINEAGE_OPTIONS"
"""Environment variable that tells this process and its jobs the options of the run, quoted for a shell."""


def announce_options(snakefile: Path | str, configfiles: Sequence[Path | str], entries: Sequence[str]) -> None:
    """Remember the options that name this run, for this process and the jobs that it starts.

    Args:
        snakefile: the workflow's.
        configfiles: as given by `--configfile`; none for the default config.
        entries: as given by `--config`.
    """
    options = []
    if not _is_default(snakefile):
        options += ["--snakefile", _short(snakefile)]
    if configfiles:
        options += ["--configfile", *map(_short, configfiles)]
    if entries:
        options += ["--config", *entries]
    os.environ[OPTIONS] = shlex.join(options)


def command(*arguments: str) -> str:
    """A command for this run, to be copied into a shell in its working directory.

    Args:
        *arguments: of `snakemake`. They come first, because `--configfile` takes every word after it.
    """
    return " ".join(filter(None, ["snakemake", shlex.join(arguments), os.environ.get(OPTIONS, "")]))


def require_quotable(executable: str) -> None:
    """Refuse a Python that Snakemake cannot start jobs with, because it puts its path into a shell without quotes.

    Raises:
        InputError: if the path has a space or another character that a shell does not take literally.
    """
    if not all(map(_is_literal, executable)):
        raise InputError(
            f"Python must be at a path without spaces and without characters that mean something to a shell, because "
            f"Snakemake starts jobs through a shell without quoting it, but it is at '{executable}'; make the virtual "
            f"environment elsewhere, such as {VENV} (the workflow and its results may stay), and start snakemake from "
            "there"
        )


def _is_literal(letter: str) -> bool:
    """True of a character that a shell takes as it is. `shlex.quote` alone would quote every letter outside ASCII."""
    return letter.isprintable() and (not letter.isascii() or shlex.quote(letter) == letter)


def _is_default(snakefile: Path | str) -> bool:
    """True if Snakemake finds this Snakefile by itself."""
    return Path(snakefile).resolve() == Path("Snakefile").resolve()


def _short(path: Path | str) -> str:
    """A path relative to the working directory if it lies in it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
