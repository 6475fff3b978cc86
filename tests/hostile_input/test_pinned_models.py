"""Models from the hub: only the files needed, at one commit, with their digests."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from tests.hub_server import running_hub

IMPORT = """
import json
import sys
from pathlib import Path

from import_model import import_model
from saelineage.files.hub import hub_download

imported = import_model({"repo": "own/model", "revision": "main"}, "far", 16, Path(sys.argv[1]), Path("taken"))
errors = []
for repo in ("own/pickles", "own/astray", "own/gguf", "own/adapter", "own/encoder", "own/short"):
    try:
        import_model({"repo": repo, "revision": "main"}, "far", 16, Path(sys.argv[1]), Path("refused"))
    except ValueError as error:
        errors.append(f"{type(error).__name__}: {error}")
try:
    hub_download("own/model", imported["commit"], "../../outside.txt", "models.far")
except ValueError as error:
    errors.append(f"{type(error).__name__}: {error}")
print(json.dumps([imported, errors]))
"""


def test_a_model_from_the_hub_is_pinned_and_nothing_else_is_downloaded(tiny, tmp_path: Path):
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    files = {name: (tiny.models["a"] / name).read_bytes() for name in names} | {"generation_config.json": b"{"}
    more = {"pytorch_model.bin": b"code", "modeling_mine.py": b"code", "README.md": b"text"}
    index = json.dumps({"weight_map": {"a": "../../outside.safetensors"}}).encode()
    with running_hub() as hub:
        commit = hub.push("own/model", files | more, kind="models")
        hub.push("own/pickles", {"config.json": files["config.json"], "pytorch_model.bin": b"code"}, kind="models")
        hub.push("own/gguf", {"smol-Q4_1.gguf": b"GGUF", "README.md": b"text"}, kind="models")
        adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
        hub.push("own/adapter", adapter, kind="models")
        short = json.dumps(json.loads(files["config.json"]) | {"max_position_embeddings": 8}).encode()
        for name, config in {"encoder": b'{"model_type": "bert"}', "short": short}.items():
            hub.push(f"own/{name}", {"config.json": config, "model.safetensors": b"never fetched"}, kind="models")
        astray = {"config.json": files["config.json"], "model.safetensors.index.json": index}
        hub.push("own/astray", astray, kind="models")
        done = subprocess.run(
            [sys.executable, "-c", IMPORT, str(tiny.tokenizer)],
            cwd=tmp_path,
            env=hub.environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        requests = [request for request in hub.requests if "/resolve/" in request]
        fetched = {request.split("/")[-1] for request in requests}
    assert done.returncode == 0, done.stderr
    imported, errors = json.loads(done.stdout)
    assert imported == {
        "commit": commit,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    assert fetched == {*files, "model.safetensors.index.json"}
    assert not [request for request in requests if "/encoder/" in request and "safetensors" in request]
    pickles, astray, gguf, adapter, encoder, short, outside = errors
    assert "but GGUF ('smol-Q4_1.gguf'), a format of llama.cpp" in gguf
    assert "but an adapter to another model (adapter_config.json)" in adapter
    assert encoder.startswith("InputError: models.far: model_type 'bert' is an encoder")
    assert short.startswith("InputError: models.far: tokens.n_ctx must be at most 8")
    assert pickles.startswith("InputError: models.far: 'own/pickles' cannot be opened")
    assert "pickles, as in .bin files" in pickles
    assert "must name safetensors files of this folder, not '../../outside.safetensors'" in astray
    assert outside.startswith("InputError: models.far: files of 'own/model' must lie in it, but '../../outside.txt'")
    assert (tmp_path / "taken" / "model.safetensors").exists()
    assert not (tmp_path / "refused").exists()
