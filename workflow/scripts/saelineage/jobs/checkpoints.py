"""Where training jobs keep what they need to go on after an interruption."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saelineage.files.atomic import sha256_file, sha256_json
from saelineage.jobs.manifests import recorded_sha256

DECIDES_RESULTS = False


@contextmanager
def checkpoint_folder(snakemake: object, stage: str, name: str) -> Iterator[Path]:
    """The folder of one training job's checkpoints; removed when the job ends well, kept when it is killed.

    Its name holds a digest of everything that decides the training, so that a job never goes on from another one's
    checkpoint.

    Args:
        snakemake: the script's object: its inputs, params and threads.
        stage: models or saes.
        name: what is trained.
    """
    inputs = {str(path): recorded_sha256(path) or sha256_file(path) for path in sorted(map(str, snakemake.input))}
    digest = sha256_json([dict(snakemake.params.items()), inputs, snakemake.threads])[:12]
    folder = Path("results", snakemake.wildcards.run, "checkpoints", stage, name)
    yield folder / digest
    shutil.rmtree(folder, ignore_errors=True)
