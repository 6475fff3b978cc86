"""Groups of whole documents: which tokens are in each, and sums over them."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from saelineage.crosscoders.document_groups import FvuSums, group_of_tokens, kept_latents, sums_by_group
from saelineage.crosscoders.dumps import open_in_step
from saelineage.crosscoders.latent_scaling import couples_of, scaling_sums
from saelineage.errors import InputError
from saelineage.features.shards import save_shard
from saelineage.lineage.crosscoder_shares import weighted
from tests.unit.crosscoders.made import crosscoder_of, write_dumps

DOCUMENTS = {"lua": np.array([0, 0, 1, 1, 1, 2, 3, 3]), "text": np.array([-1, 0, 0, 1])}


@pytest.fixture
def dumps(tmp_path: Path) -> dict:
    """Two models on eight tokens of Lua and four of other text, in one shard each."""
    random = torch.Generator().manual_seed(0)
    paths: dict[str, list[Path]] = {"a": [], "b": []}
    for corpus, n in (("lua", 8), ("text", 4)):
        acts = {model: torch.randn(n, 3, generator=random) for model in "ab"}
        for model, written in write_dumps(tmp_path / corpus, acts, n_shards=1).items():
            paths[model] += written
    return open_in_step(paths)


def test_documents_of_each_corpus_are_dealt_in_turn(dumps):
    groups = group_of_tokens(dumps["a"], DOCUMENTS, ["lua", "text"], 2)
    assert groups[:8].tolist() == [0, 0, 1, 1, 1, 0, 1, 1]
    assert groups[9:].tolist() == [0, 0, 1]
    dumps["a"].keep(np.array([2, 5, 11]))
    assert group_of_tokens(dumps["a"], DOCUMENTS, ["lua", "text"], 2).tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="tokens of the probe of 'text'"):
        group_of_tokens(dumps["a"], DOCUMENTS, ["text", "lua"], 2)


def test_sums_of_groups_add_up_to_those_of_all_tokens(dumps):
    crosscoder = crosscoder_of(np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32))
    couples = couples_of([("a", "b")])
    groups = group_of_tokens(dumps["a"], DOCUMENTS, ["lua", "text"], 2)
    encoded = crosscoder.encode({model: dump[np.arange(12)] for model, dump in dumps.items()})
    rows = scipy.sparse.csr_array((encoded.values, encoded.indices, encoded.indptr), shape=(12, 5))
    by_group, fvu = sums_by_group(crosscoder, dumps, rows, groups, couples, torch.device("cpu"))
    assert [sums.n_tokens for sums in by_group] == [np.sum(groups == group).item() for group in np.unique(groups)]
    joint = crosscoder.joint({model: dump[np.arange(12)] for model, dump in dumps.items()})
    latents = crosscoder.encoder().encode(joint)
    whole, expected = weighted(by_group, [1] * len(by_group)), scaling_sums(crosscoder, joint, latents, couples)
    assert whole.n_tokens == expected.n_tokens == 12
    for name in ("n_firings", "squares", "on_error", "on_recons"):
        np.testing.assert_allclose(getattr(whole, name), getattr(expected, name), atol=1e-5)
    acts = dumps["b"][np.arange(12)].double()
    error = (acts - crosscoder.decode(latents, "b")).square().sum()
    assert fvu.fvu()["b"] == pytest.approx(float(error / (acts - acts.mean(0)).square().sum()), rel=1e-5)


def test_latents_are_those_of_the_tokens_that_a_dump_keeps(dumps, tmp_path: Path):
    paths = []
    for number, shard in enumerate(dumps["a"].shards):
        rows = np.eye(shard.n_tokens, dtype=np.float32)[:, :4]
        sparse = scipy.sparse.csr_array(rows)
        header = {"model": "lineage", "sae": "seed0", "corpus": "lua", "d_sae": 4}
        header |= {key: shard.header[key] for key in ("ids_sha256", "first_row", "stop_row", "n_ctx")}
        paths.append(tmp_path / f"{number}.safetensors")
        compared = np.ones(shard.n_tokens, dtype=bool)
        parts = (sparse.indptr, sparse.indices, sparse.data)
        save_shard(paths[-1], *parts, shard.positions().numpy(), compared, header)
    assert kept_latents(paths, dumps["a"]).toarray().argmax(1).tolist() == [0, 1, 2, 3, 0, 0, 0, 0, 0, 1, 2, 3]
    dumps["a"].keep(np.array([2, 5, 11]))
    assert kept_latents(paths, dumps["a"]).toarray().tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    with pytest.raises(InputError, match="must hold latents of the tokens in"):
        kept_latents(paths[::-1], dumps["a"])


def test_fvu_of_activations_that_do_not_vary_is_undefined():
    sums = FvuSums(["a"], 2)
    sums.n = 3
    sums.add("a", torch.ones(3, 2), torch.zeros(3, 2))
    assert np.isnan(sums.fvu()["a"])
