"""Matching two SAEs over token types, as the rule does."""

import numpy as np
import pytest
import scipy.sparse

from match_token_types import match_token_types_of_pair
from saelineage.correlations.token_types import load_token_type_matches
from saelineage.errors import InputError
from saelineage.features.shards import FeatureShard, save_shard
from saelineage.tokens import TokenRows, load_tokenizer

SETTINGS = {"top_matches": 3, "keep_above": 0.3, "n_bins": 20, "block_features": 5}
CORPORA = ("words", "sums")
D_SAE = 12
ROWS = 4


@pytest.fixture
def write_sae(tiny, tmp_path):
    """Write random features of the first rows of the tiny corpora, two shards each; gives the paths."""

    def write(sae: str, seed: int, **header: str) -> list[str]:
        random, paths = np.random.default_rng(seed), []
        for corpus in CORPORA:
            digest = TokenRows(tiny.tokens[corpus]["probe"]).digest
            for first in (0, ROWS):
                positions = np.arange(first * tiny.n_ctx, (first + ROWS) * tiny.n_ctx)
                shape = (len(positions), D_SAE)
                rows = scipy.sparse.csr_array(random.gamma(2, 1, shape) * (random.random(shape) < 0.2))
                covered = {"ids_sha256": digest, "first_row": first, "stop_row": first + ROWS, "n_ctx": tiny.n_ctx}
                own = {"model": "m", "sae": sae, "corpus": corpus, "d_sae": D_SAE} | covered | header
                paths.append(str(tmp_path / f"{sae}-{corpus}-{first}.safetensors"))
                compared = np.ones(len(positions), dtype=bool)
                save_shard(paths[-1], rows.indptr, rows.indices, rows.data, positions, compared, own)
        return paths

    return write


@pytest.fixture
def match(tiny, tmp_path):
    """Match two SAEs; gives the bytes of the file and what is read from it."""

    def run(a: list[str], b: list[str], threads: int = 1):
        path = tmp_path / "matches.safetensors"
        tokens = {corpus: str(tiny.tokens[corpus]["probe"]) for corpus in CORPORA}
        match_token_types_of_pair(a, b, tokens, tiny.tokenizer, SETTINGS, threads, str(path))
        return path.read_bytes(), load_token_type_matches(path)

    return run


def means_by_string(tiny, paths: list[str], latent: int) -> dict[str, float]:
    """The mean activation of one feature by decoded token, one token after the other."""
    tokenizer, found = load_tokenizer(tiny.tokenizer), {}
    for path in paths:
        shard = FeatureShard(path)
        ids = TokenRows(tiny.tokens[shard.corpus]["probe"]).ids.reshape(-1)[shard.positions]
        for token, value in zip(ids.tolist(), shard.latents[:, [latent]].toarray().ravel(), strict=True):
            if value > 0:
                text = tokenizer.decode([token], skip_special_tokens=False)
                found.setdefault(text, []).append(float(value))
    return {text: sum(values) / len(values) for text, values in found.items()}


def test_an_sae_matched_with_itself_finds_every_feature_again(match, write_sae):
    paths = write_sae("seed0", 0)
    _, found = match(paths, paths)
    assert found.names == ("m.seed0", "m.seed0")
    assert found.matches.partners[0][:, 0].tolist() == list(range(D_SAE))
    assert found.matches.best[0][:, 0] == pytest.approx(np.ones(D_SAE))
    assert found.one_to_one.tolist() == list(range(D_SAE))


def test_the_best_match_is_that_of_means_by_decoded_string(match, write_sae, tiny):
    a, b = write_sae("seed0", 0), write_sae("seed1", 1)
    _, found = match(a, b)
    of_a, candidates = means_by_string(tiny, a, 7), [means_by_string(tiny, b, latent) for latent in range(D_SAE)]
    shared = [sorted(of_a.keys() & of_b.keys()) for of_b in candidates]
    r = [
        np.corrcoef([of_a[text] for text in texts], [of_b[text] for text in texts])[0, 1]
        for texts, of_b in zip(shared, candidates, strict=True)
    ]
    best = int(np.argmax(r))
    assert found.matches.partners[0][7, 0] == best
    assert found.matches.best[0][7, 0] == pytest.approx(r[best], abs=1e-12)
    assert found.n_types_of_best[0][7] == len(shared[best])


def test_equal_inputs_give_equal_bytes_with_any_number_of_threads(match, write_sae):
    paths = write_sae("seed0", 0), write_sae("seed1", 1)
    assert match(*paths)[0] == match(*paths, threads=3)[0]


def test_features_of_other_tokens_are_refused(match, write_sae):
    with pytest.raises(InputError, match="must hold features of the tokens of 'words'"):
        match(write_sae("seed0", 0), write_sae("seed1", 1, ids_sha256="0" * 8))


def test_a_missing_shard_is_noticed(match, write_sae):
    with pytest.raises(InputError, match=r"4 shards and those of 'm.seed1' over"):
        match(write_sae("seed0", 0), write_sae("seed1", 1)[:-1])
