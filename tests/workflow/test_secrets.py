"""Secrets are in the environment, and in nothing that is written or printed."""

import base64
from pathlib import Path

from tests.workflow.conftest import SECRETS, TINY, Checkout


def holders(folder: Path, secrets: list[bytes]) -> list[str]:
    """Files below a folder, including hidden ones, with a secret in their name or bytes."""
    holding = []
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        if any(secret in content or secret in str(path).encode() for secret in secrets):
            holding.append(str(path.relative_to(folder)))
    return holding


def as_written(secret: str) -> list[bytes]:
    """A secret in plain text, in hexadecimal, and in base 64 as in a password header."""
    return [secret.encode(), secret.encode().hex().encode(), base64.b64encode(secret.encode()).rstrip(b"=")]


def test_a_whole_run_writes_no_secret_of_its_environment(finished: Checkout):
    secrets = [form for secret in SECRETS.values() for form in as_written(secret)]
    written = {path.relative_to(finished.folder).parts[0] for path in finished.folder.rglob("*") if path.is_file()}
    assert {".snakemake", "results"} <= written
    assert holders(finished.folder, secrets) == []


def test_a_secret_that_is_written_would_be_found(tmp_path: Path):
    secret = SECRETS["HF_TOKEN"]
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / ".snakemake" / "a.log").write_text(f"HF_TOKEN={secret}")
    (tmp_path / "b.bin").write_bytes(b"\0" + as_written(secret)[2])
    assert holders(tmp_path, as_written(secret)) == [".snakemake/a.log", "b.bin"]


def test_a_token_in_a_config_is_refused_without_being_repeated(finished: Checkout, tmp_path: Path):
    config, token = tmp_path / "config.yaml", "hf_" + "aB3dE6" * 6
    config.write_text(TINY.read_text().replace("kind: lua", f"kind: {token}", 1))
    done = finished.snakemake("-n", config=config)
    assert done.returncode == 1
    assert "corpora.lua.kind:" in done.stdout + done.stderr
    assert token not in done.stdout + done.stderr
    assert holders(finished.folder, [token.encode()]) == []
