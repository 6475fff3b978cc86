"""Folders in which training jobs keep their checkpoints, for resuming after an interruption."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saelineage.files.atomic import sha256_file, sha256_json
from saelineage.jobs.benchmark import beside_log
from saelineage.jobs.manifests import recorded_sha256

DECIDES_RESULTS = False


@contextmanager
def checkpoint_folder(snakemake: Any) -> Iterator[Path]:
    """Give one training job a folder for checkpoints; it is removed when the job succeeds, and kept otherwise.

    Its name holds a digest of everything that decides the training, so that a job never resumes from a checkpoint of
    another training.

    Args:
        snakemake: the script's object: inputs, params, log and threads.
    """
    inputs = {str(path): recorded_sha256(path) or sha256_file(path) for path in sorted(map(str, snakemake.input))}
    digest = sha256_json([dict(snakemake.params.items()), inputs, snakemake.threads])[:12]
    folder = beside_log(snakemake.log[0], "checkpoints")
    yield folder / digest
    shutil.rmtree(folder, ignore_errors=True)
