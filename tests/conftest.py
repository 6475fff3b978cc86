"""Shared by tests: a tiny model with its tokenizer and token rows on disk, and writers of small files."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault(
    "GOMP_SPINCOUNT", "1000"
)  # before torch is loaded: two workers share the cores (jobs.session.SPINS)

import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

from saelineage.files.atomic import encode_header, write_json
from tests.faults.kills import Small, Undisturbed
from tests.sae_settings import SAE_SETTINGS

RUN = "tests/workflow/test_tiny_run.py"
"""Makes the run that all other tests in tests/workflow read."""
LONGEST = (
    "tests/faults/test_faults.py",
    "tests/workflow/test_slurm.py",
    "tests/workflow/test_page.py",
    "tests/workflow/test_staleness.py",
    "tests/scripts/test_scripts.py",
    "tests/unit/jobs/test_listing.py",
    "tests/unit/saes/test_training.py",
    "tests/unit/models/test_training.py",
)
"""Files that take half a minute or more. The first two read another run."""
N_CTX = 16
VOCABULARY = 300
ANIMALS = ("cat", "dog", "owl", "hen", "fox")
PLACES = ("mat", "wall", "roof", "road")


class ByFile(LoadScopeScheduling):
    """Give each of several processes (`-n 2`) whole files, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Schedule by file."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, start the files that take minutes first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: place(item.nodeid.partition("::")[0]))


def place(path: str) -> int:
    """Rank of a test file: the run first, then long files; short files last, so that processes end together."""
    first = (RUN, *LONGEST)
    return first.index(path) if path in first else len(first)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> tuple[Path, Any]:
    """A folder that one process of a test session makes for all of them, to be copied and not changed.

    Args:
        factory: pytest's, of session scope.
        name: of the folder.
        make: makes the folder and returns a value that JSON can hold.

    Returns:
        The folder and that value.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = base / name, base / f"{name}.json"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that failed
            made.write_text(json.dumps(make(folder)))
    return folder, json.loads(made.read_text())


def run_small(folder: Path) -> dict:
    """Run tests/faults/small.yaml from nothing to the page; return the digests of its files."""
    return Small(folder).finish()._asdict()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Undisturbed]:
    """A small undisturbed run, not to be changed, and the digests of its files."""
    folder, whole = made_once(tmp_path_factory, "small_run", run_small)
    return folder, Undisturbed(**whole)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Give torch one thread in tests that use it; others do not import it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _documents(corpus: str, n: int) -> Iterator[str]:
    """Short sentences (`words`) or sums (`sums`)."""
    random = np.random.default_rng(0 if corpus == "words" else 1)
    for _ in range(n):
        if corpus == "words":
            yield f"The {random.choice(ANIMALS)} and the {random.choice(ANIMALS)} sat on the {random.choice(PLACES)}.\n"
        else:
            a, b = random.integers(0, 50, 2)
            yield f"local sum = {a} + {b} -- {a + b}\n"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders made once, not to be changed.

    `tokenizer`; `tokens[corpus][split]` for the corpora `words` and `sums`; `models`, two Mistrals `a` and `b` with
    different random weights, 2 layers, width 32; `n_ctx`, `d_vocab`, and the models' `settings`.
    """
    from saelineage.models.training import new_mistral, save_model
    from saelineage.tokens import save_tokenizer, special_ids, train_tokenizer, write_rows, write_sidecar

    root = tmp_path_factory.mktemp("tiny")
    texts = [text for corpus in ("words", "sums") for text in _documents(corpus, 200)]
    save_tokenizer(train_tokenizer(texts, VOCABULARY), root / "tokenizer", N_CTX)
    tokens: dict[str, dict[str, Path]] = {}
    for corpus in ("words", "sums"):
        for split, n in {"train": 150, "validation": 30, "probe": 60}.items():
            path = root / "tokens" / corpus / f"{split}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_sidecar(path, write_rows(_documents(corpus, n), root / "tokenizer", N_CTX, None, path))
            tokens.setdefault(corpus, {})[split] = path
    settings = {
        "n_layers": 2,
        "d_model": 32,
        "d_mlp": 48,
        "n_heads": 4,
        "n_kv_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_embeddings": False,
    }
    models = {}
    for seed, name in enumerate(("a", "b")):
        model = new_mistral(settings | {"seed": seed}, VOCABULARY, N_CTX, special_ids(root / "tokenizer"))
        models[name] = root / "models" / name
        save_model(model, root / "tokenizer", models[name])
    return SimpleNamespace(
        tokenizer=root / "tokenizer", tokens=tokens, models=models, n_ctx=N_CTX, d_vocab=VOCABULARY, settings=settings
    )


@pytest.fixture(scope="session")
def model(tiny: SimpleNamespace):
    """The tiny model `a`, not to be changed; deepcopy it first."""
    from saelineage.models.loading import load_model

    return load_model(tiny.models["a"])


@pytest.fixture
def write_tokens(tmp_path: Path) -> Callable:
    """Write token rows from a nested list, BOS 0 and EOS 1, and open them."""
    from saelineage.tokens import TokenRows

    def write(ids: list[list[int]], name: str = "tokens"):
        rows = np.array(ids, dtype=np.uint16)
        digest = hashlib.sha256(rows.tobytes()).hexdigest()
        np.save(tmp_path / f"{name}.npy", rows)
        shape = {"n_rows": rows.shape[0], "n_ctx": rows.shape[1]}
        write_json(tmp_path / f"{name}.json", shape | {"bos_id": 0, "eos_id": 1, "ids_sha256": digest})
        return TokenRows(tmp_path / f"{name}.npy")

    return write


@pytest.fixture
def write_acts(tmp_path: Path) -> Callable:
    """Write an activation shard with the given activations."""
    import torch
    from safetensors.torch import save_file

    def write(acts: "torch.Tensor", name: str = "acts", hookpoint: str = "layer.output") -> Path:
        header = {"hookpoint": hookpoint, "ids_sha256": "0" * 8, "first_row": 0, "stop_row": len(acts), "n_ctx": 1}
        path = tmp_path / f"{name}.safetensors"
        norms = acts.float().norm(dim=1)
        tensors = {"acts": acts.contiguous(), "norms": norms, "positions": torch.arange(len(acts))}
        save_file(tensors, path, metadata=encode_header(header))
        return path

    return write


@pytest.fixture
def write_features(tmp_path: Path) -> Callable:
    """Write a feature shard from a dense array [token, d_sae], and open it."""
    import scipy.sparse

    from saelineage.features.shards import FeatureShard, save_shard

    def write(dense: np.ndarray, name: str = "features", first_row: int = 0, **header: str | int) -> FeatureShard:
        rows = scipy.sparse.csr_array(dense)
        named = {"model": "m", "sae": "seed0", "corpus": "words", "ids_sha256": "0" * 8, "n_ctx": 1}
        covered = {"d_sae": dense.shape[1], "first_row": first_row, "stop_row": first_row + len(dense)}
        path = tmp_path / f"{name}.safetensors"
        positions = first_row + np.arange(len(dense))
        compared = np.ones(len(dense), dtype=bool)
        save_shard(path, rows.indptr, rows.indices, rows.data, positions, compared, named | covered | header)
        return FeatureShard(path)

    return write


@pytest.fixture
def training_settings() -> dict:
    """A config's `training` block: 20 steps of 4 rows on the tiny rows."""
    return {
        "corpora": {"words": 1.0},
        "n_tokens": 20 * 4 * N_CTX,
        "epochs": None,
        "batch_rows": 4,
        "accumulate": 1,
        "gradient_checkpointing": False,
        "precision": "float32",
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "scheduler": "cosine",
        "weight_decay": 0.1,
        "adam_betas": [0.9, 0.999],
        "max_grad_norm": 1.0,
        "seed": 3,
        "save_steps": 5,
        "bf16": False,
    }


@pytest.fixture
def sae_settings() -> dict:
    """Settings of one small SAE."""
    return dict(SAE_SETTINGS)
