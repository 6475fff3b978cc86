"""Run the tiny lineage of tests/workflow, then its features, correlations and verdicts again without a GPU.

    python -m benchmarks.tiny_lineage FOLDER

The second run has the models, activations and SAEs of the first, because SAEs trained on different devices differ in
their last bits, and after many steps in their latents. Results are in FOLDER/first and FOLDER/second, under
results/tiny.
"""

import argparse
import os
import shutil
from pathlib import Path

from tests.workflow.conftest import Checkout

AGAIN = ("features", "correlations", "lineage")


def run(checkout: Checkout) -> None:
    """Complete a lineage; end with its output if it fails."""
    done = checkout.snakemake("--cores", "2", "--keep-going")
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def main() -> None:
    """Make both runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True)
    first = Checkout(folder / "first")
    run(first)
    second = Checkout(folder / "second", original=first.folder)
    for stage in AGAIN:
        shutil.rmtree(second.folder / "results" / "tiny" / stage)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    run(second)


if __name__ == "__main__":
    main()
