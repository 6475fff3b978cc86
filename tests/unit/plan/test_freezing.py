"""Half fine-tuning in the plan: the weights that a `freeze` block draws, what is refused, and the memory it spares."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saelineage.errors import InputError
from saelineage.plan.brought import check_on_disk
from saelineage.plan.checks import check
from saelineage.plan.config import load_config, read_schema
from saelineage.plan.freezing import frozen_weights
from saelineage.plan.plan import Plan
from tests.hub_server import SCRIPTS
from tests.unit.plan.jobs import InputFiles, Wildcards

SCHEMA = read_schema(SCRIPTS.parents[1] / "config" / "config.schema.yaml")
ATTENTION = [f"self_attn.{kind}_proj" for kind in "qkvo"]
MLP = [f"mlp.{kind}_proj" for kind in ("gate", "up", "down")]
NORMS = ["input_layernorm", "post_attention_layernorm"]
OUTSIDE = {"model.embed_tokens.weight": (99, 8), "model.norm.weight": (8,), "lm_head.weight": (99, 8)}


def mistral(n_blocks: int) -> dict[str, tuple[int, ...]]:
    sizes = dict.fromkeys(ATTENTION + MLP, (8, 8)) | dict.fromkeys(NORMS, (8,))
    blocks = range(n_blocks)
    return OUTSIDE | {f"model.layers.{n}.{kind}.weight": shape for n in blocks for kind, shape in sizes.items()}


def drawn(shapes: dict, share: float = 0.5, seed: int = 0) -> list[str]:
    return frozen_weights(shapes, {"share": share, "seed": seed}, "models.lua.finetune.freeze")


def counts(names: list[str], n_blocks: int, kinds: list[str]) -> list[int]:
    """The number of these kinds that are frozen in each block."""
    return [sum(f"model.layers.{n}.{kind}.weight" in names for kind in kinds) for n in range(n_blocks)]


@pytest.mark.parametrize("seed", range(5))
def test_half_of_each_block_s_matrices_and_of_each_kind_is_frozen(seed: int):
    names = drawn(mistral(6), seed=seed)
    assert counts(names, 6, ATTENTION) == [2] * 6
    assert sorted(counts(names, 6, MLP)) == [1, 1, 1, 2, 2, 2]  # of three
    assert counts(names, 6, NORMS) == [1] * 6
    for kind in ATTENTION + MLP + NORMS:
        assert sum(counts(names, 6, [kind])) == 3
    assert len(names) == 6 * 2 + 9 + 6  # nothing else: neither embeddings nor the last norm


def test_one_block_has_half_of_its_own_frozen():
    names = drawn(mistral(1))
    assert [counts(names, 1, kinds) for kinds in (ATTENTION, MLP, NORMS)] == [[2], [2], [1]]  # 1.5 is rounded up


def test_a_number_that_does_not_divide_is_spread_evenly():
    # 0.3 of 3 x 4 matrices are 3.6, so 4: a block has one or two, and every kind one.
    names = drawn(mistral(3), share=0.3)
    assert sorted(counts(names, 3, ATTENTION)) == [1, 1, 2]
    assert [sum(counts(names, 3, [kind])) for kind in ATTENTION] == [1, 1, 1, 1]
    # 5 blocks have 5 x 1.5 matrices of the MLP, so 8: kinds have 2 or 3 of 5.
    names = drawn(mistral(5))
    assert sorted(counts(names, 5, MLP)) == [1, 1, 2, 2, 2]
    assert sorted(sum(counts(names, 5, [kind])) for kind in MLP) == [2, 3, 3]


def test_the_ends_of_the_share_freeze_nothing_and_all_that_blocks_have():
    assert drawn(mistral(2), share=0) == frozen_weights(mistral(2), None, "key") == []
    assert drawn(mistral(2), share=1) == sorted(mistral(2).keys() - OUTSIDE.keys())


def test_the_draw_follows_from_the_seed_and_not_from_the_order_of_names():
    shapes = mistral(4)
    for seed in range(5):
        names = list(shapes)
        random.Random(seed).shuffle(names)
        assert drawn({name: shapes[name] for name in names}, seed=seed) == drawn(shapes, seed=seed)
    assert len({tuple(drawn(shapes, seed=seed)) for seed in range(5)}) == 5
    # A kind's draw does not depend on what else the model has.
    attention = {name: shape for name, shape in shapes.items() if "self_attn" in name}
    assert drawn(attention) == [name for name in drawn(shapes) if "self_attn" in name]


def test_every_pair_of_matrices_is_equally_likely():
    # Two of four: each with probability 1/2, both of a pair with 1/6. 600 draws, 3 standard errors.
    n = 600
    blocks = [[kind for kind in ATTENTION if counts(drawn(mistral(2), seed=s), 2, [kind])[0]] for s in range(n)]
    for a in ATTENTION:
        assert abs(sum(a in of for of in blocks) / n - 1 / 2) < 3 * math.sqrt(1 / 4 / n)
        for b in set(ATTENTION) - {a}:
            assert abs(sum(a in of and b in of for of in blocks) / n - 1 / 6) < 3 * math.sqrt(5 / 36 / n)


def test_a_bias_goes_with_its_matrix_and_fused_or_single_layers_are_drawn_over_the_blocks():
    kinds = {"attn.c_attn": (24, 8), "attn.c_proj": (8, 8), "fc1": (8, 8), "ln_1": (8,), "experts.gate_up": (4, 8, 8)}
    shapes = {f"h.{n}.{kind}.weight": shape for n in range(4) for kind, shape in kinds.items()}
    shapes |= {f"h.{n}.{kind}.bias": (8,) for n in range(4) for kind in kinds if not kind.startswith("experts")}
    shapes |= {f"h.{n}.experts.gate_up_bias": (4, 8) for n in range(4)}
    names = drawn(shapes)
    for kind in kinds:
        frozen = [n for n in range(4) if f"h.{n}.{kind}.weight" in names]
        assert len(frozen) == 2
        bias = f"{kind}_bias" if kind.startswith("experts") else f"{kind}.bias"
        assert [n for n in range(4) if f"h.{n}.{bias}" in names] == frozen


def test_blocks_with_other_kinds_are_drawn_apart():
    shapes = {f"layers.{n}.mixer.{kind}.weight": (8, 8) for n in (0, 2, 4, 6) for kind in ("in_proj", "out_proj")}
    shapes |= {f"layers.{n}.mixer.{kind}.weight": (8, 8) for n in (1, 3) for kind in ("q", "k", "v", "o")}
    names = drawn(shapes)
    assert [sum(name.startswith(f"layers.{n}.") for name in names) for n in range(7)] == [1, 2, 1, 2, 1, 0, 1]


def test_a_share_that_freezes_no_matrix_is_refused_with_what_there_is():
    with pytest.raises(InputError) as raised:
        drawn(mistral(1), share=0.1)
    assert str(raised.value) == (
        "models.lua.finetune.freeze.share: must freeze at least one matrix, but 0.1 freezes none of the 7 in the "
        "parent's blocks; raise it, or leave out freeze to train all weights"
    )
    hostile = {f"{'1' * 5000}.weight": (8, 8), "0.0.weight": (8, 8), "1": (8,), "": ()}
    with pytest.raises(InputError, match=r"freezes none of the 2 in"):
        drawn(hostile, share=0.1)


PRETRAIN = {"corpora": {"lua": 1.0}, "n_tokens": 5120, "d_model": 32, "n_heads": 4, "n_kv_heads": 2}


def plan(freeze: dict | None, **settings: object) -> Plan:
    finetune = {"parent": "base", "corpora": {"lua": 1.0}, "n_tokens": 5120} | settings
    given = {
        **{"run": "mine", "corpora": {"lua": {"source": "sample", "kind": "lua"}}},
        "tokenizer": {"source": "train", "vocab_size": 300, "corpora": ["lua"]},
        "models": {
            "base": {"pretrain": PRETRAIN},
            "tuned": {"finetune": finetune | ({} if freeze is None else {"freeze": freeze})},
            "again": {"twin": {"of": "tuned"}},
            "more": {"continued": {"parent": "base", "like": "tuned"}},
        },
    }
    checked = Plan(load_config(given, SCHEMA))
    check(checked)
    return checked


def test_an_empty_block_is_half_fine_tuning_and_controls_have_the_same_draw():
    graph = plan({}).graph
    assert graph.freeze("tuned") == {"share": 0.5, "seed": 0}
    for control in ("again", "more"):
        assert graph.freeze(control) == graph.freeze("tuned")
        assert graph.settings(control)["seed"] != graph.settings("tuned")["seed"]
    assert graph.made("tuned") == "fine-tuned from base with 0.5 of the matrices of each block frozen (seed 0)"
    graph = plan({"share": 0}).graph
    assert graph.freeze("tuned") is None
    assert graph.made("tuned") == "fine-tuned from base"


def test_freeze_beside_lora_and_a_share_that_freezes_nothing_are_refused_before_the_first_job():
    with pytest.raises(InputError, match=r"models\.tuned\.finetune: must have lora or freeze, not both, because lora"):
        plan({}, lora={})
    with pytest.raises(InputError, match=r"models\.tuned\.finetune\.freeze\.share: .* 0\.1 freezes none of the 7"):
        check_on_disk(plan({"share": 0.1}), lambda manifest: False)
    assert check_on_disk(plan({"share": 0.5}), lambda manifest: False) == []
    with pytest.raises(InputError, match=r"share"):
        plan({"share": 1.5})


def test_frozen_weights_need_neither_gradients_nor_moments(tmp_path: Path):
    shapes = mistral(1)
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 99}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    rows = tmp_path / "rows.npy"
    rows.write_bytes(b"x" * 600)
    inputs = InputFiles(parent=[str(tmp_path / "model.safetensors")], tokens=[str(rows)])

    def need(freeze: dict | None, **settings: object):
        return plan(freeze, **settings).needs.finetuning(Wildcards(model="tuned"), inputs)

    # 4 of 7 matrices of 8 x 8 and 1 of 2 norms: 264 weights, without gradient and two moments of 4 bytes each.
    full, half = need(None), need({})
    assert full.n_bytes - half.n_bytes == 12 * 264
    assert full.flop - half.flop == 2 * 264 * 5120
    # In bfloat16 2 of 14 bytes are left, and the float32 parent is opened again for what the file takes from it.
    n_weights = sum(math.prod(shape) for shape in shapes.values())
    full, half = need(None, precision="bfloat16"), need({}, precision="bfloat16")
    assert full.n_bytes - half.n_bytes == 12 * 264 - 4 * n_weights
    assert need({"share": 0}) == need(None)
    inputs.parent[0] = str(tmp_path / "later/model.safetensors")
    with pytest.raises(FileNotFoundError):  # Snakemake then asks again
        need({})
