"""Jobs that read several hookpoints give each what is its own."""

from pathlib import Path

from dump_activations import dump_activations
from measure_model import by_hookpoint
from saelineage.activations import ActivationShard
from saelineage.tokens import TokenRows

PLACES = ("model.layers.0.output", "model.layers.0.mlp.down_proj.input")
CORPORA = ("words", "sums")


def test_a_dump_writes_every_corpus_at_every_hookpoint_into_the_shard_of_both(tiny, tmp_path: Path):
    tokens = [str(tiny.tokens[corpus]["probe"]) for corpus in CORPORA]
    shards = [str(tmp_path / f"{number}.{corpus}") for number in range(len(PLACES)) for corpus in CORPORA]
    dump_activations("a", tiny.models["a"], tokens, shards, "00000-of-00001", PLACES, "float32", None, 4, 0)
    headers = [ActivationShard(path).header for path in shards]
    assert [header["hookpoint"] for header in headers] == [place for place in PLACES for _ in CORPORA]
    assert [header["ids_sha256"] for header in headers] == [TokenRows(path).digest for _ in PLACES for path in tokens]


def test_folders_of_saes_are_divided_by_hookpoint_in_their_order():
    folders = [Path(hookpoint, sae) for hookpoint in ("mlp", "late") for sae in ("seed0", "seed1")]
    assert by_hookpoint(("mlp", "late"), ("seed0", "seed1"), folders) == {
        hookpoint: {sae: Path(hookpoint, sae) for sae in ("seed0", "seed1")} for hookpoint in ("mlp", "late")
    }
