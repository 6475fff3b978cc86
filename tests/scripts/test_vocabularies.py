"""Models and adapters with added tokens and padded embeddings, imported and compared as the rules do."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from apply_adapter import apply_adapter
from compare_weights import compare_weights
from dump_activations import dump_activations
from import_model import import_model
from saelineage.activations import ActivationShard
from saelineage.correlations.cosines import load_similarities
from saelineage.errors import InputError
from saelineage.files.atomic import read_json, write_json
from saelineage.foreign.tokenizers import LEAVE_OUT
from saelineage.saes.sae import Sae, save_sae
from saelineage.tokens import write_rows, write_sidecar
from tests.vocabularies import END, N_IDS, START, model_folder, small_model, tokenizer_folder
from write_dashboards import effects_on_logits

HOOKPOINT = "model.layers.1.output"
TEMPLATE = "{% for m in messages %}{{ '<|im_' + 'start|>' + m.content + '<|im_' + 'end|>' }}{% endfor %}"
"""It holds no name of a control token whole."""
SETTINGS = {"top_matches": 3, "keep_above": 0.3, "n_bins": 20, "block_features": 7, "threads": 1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizers") / "plain")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tokenizer_folder(tmp_path_factory.mktemp("tokenizers") / "chat", START, END)
    config = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", config | {"chat_template": TEMPLATE})
    return folder


def taken(model: Path, tokenizer: Path, folder: Path, **settings: object) -> dict:
    return import_model({"folder": str(model)}, model.name, 16, tokenizer, folder, **settings)


def test_a_child_keeps_its_own_tokenizer_where_it_has_other_tokens(plain: Path, chat: Path, tmp_path: Path):
    child = model_folder(tmp_path / "child", chat, N_IDS + 2)
    facts = taken(child, plain, tmp_path / "ours")
    assert "which are plain text there: 2 (<|im_start|>, <|im_end|>)" in facts["warnings"][0]
    own = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert own.convert_tokens_to_ids([START, END]) == [N_IDS, N_IDS + 1]
    assert own.chat_template == TEMPLATE
    text = "The owl sat on the mat."
    assert own(text).input_ids == AutoTokenizer.from_pretrained(plain)(text).input_ids
    for n_rows in (N_IDS, N_IDS + 20):  # with the run's tokens, the run's file
        facts = taken(model_folder(tmp_path / f"rows{n_rows}", plain, n_rows), plain, tmp_path / "same")
        assert facts == {}
        assert (tmp_path / "same" / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()


def test_a_base_that_cannot_read_conversations_is_refused_at_its_import(plain: Path, chat: Path, tmp_path: Path):
    base = model_folder(tmp_path / "base", plain, N_IDS)
    message = (
        r"^models\.base: the chat template writes tokens that the model does not share, .*: 2 \(<\|im_start\|>, "
        r"<\|im_end\|>\); set tokens\.unshared: leave_out"
    )
    with pytest.raises(InputError, match=message):
        taken(base, chat, tmp_path / "ours", has_conversations=True)
    facts = taken(base, chat, tmp_path / "ours", has_conversations=True, unshared=LEAVE_OUT)
    assert "has 300 rows, none for these added tokens" in facts["warnings"][1]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "ours")) == N_IDS
    assert len(taken(base, chat, tmp_path / "ours")["warnings"]) == 2  # harmless while no text holds them
    with pytest.raises(InputError, match=r"must have an embedding row for every token .* but has 200 rows"):
        taken(model_folder(tmp_path / "small", plain, 200), plain, tmp_path / "ours")


def test_a_dump_refuses_or_leaves_out_and_records_the_counts(plain: Path, chat: Path, tmp_path: Path):
    base, rows = model_folder(tmp_path / "base", plain, N_IDS), tmp_path / "rows.npy"
    write_sidecar(rows, write_rows([f"{START}The cat sat.{END}"] * 40, chat, 16, None, rows, "ids"))
    shard = tmp_path / "shard.safetensors"
    given = ("base", base, [str(rows)], [str(shard)], "00000-of-00001", [HOOKPOINT], "float32", None, 4, 0)
    with pytest.raises(InputError, match="2 of the run's tokens that the model does not share"):
        dump_activations(*given)
    assert not shard.exists()
    facts = dump_activations(*given, unshared=LEAVE_OUT)["vocabulary"]
    held = read_json(tmp_path / "rows.json")["added_tokens"]
    n_left_out = held[START]["n"] + held[END]["n"]
    assert facts["left_out"] == {str(rows): n_left_out}
    assert int(ActivationShard(shard).norms().isnan().sum()) == n_left_out


def write_sae(folder: Path, seed: int) -> Path:
    sae = Sae("topk", 16, 8, 2)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    save_sae(sae, folder, {})
    return folder


def test_effects_on_logits_are_compared_on_the_tokens_that_both_have(plain: Path, chat: Path, tmp_path: Path):
    saes = (write_sae(tmp_path / "a", 0), write_sae(tmp_path / "b", 1))
    found = []
    for n_rows in (N_IDS, N_IDS + 20):
        folders = (
            model_folder(tmp_path / f"base{n_rows}", plain, N_IDS),
            model_folder(tmp_path / f"child{n_rows}", chat, n_rows, seed=1),
        )
        paths = [str(tmp_path / f"{n_rows}.{suffix}") for suffix in ("safetensors", "json")]
        compare_weights(("base.a", "child.b"), saes, folders, HOOKPOINT, SETTINGS, *paths)
        assert json.loads(Path(paths[1]).read_text())["left_out"] == {}
        found.append(load_similarities(paths[0])["logit_effect_cosine"])
    assert found[0].best[0][:, 0] == pytest.approx(found[1].best[0][:, 0], abs=1e-6)


def test_the_page_names_the_childs_own_tokens_and_no_rows_of_the_padding(chat: Path, tmp_path: Path):
    model = small_model(N_IDS + 20)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[N_IDS:] *= 100  # so that these rows have the largest effects
        head[N_IDS + 1] = -head[N_IDS]
    model.save_pretrained(tmp_path / "child")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "child" / name).write_bytes((chat / name).read_bytes())
    effects = effects_on_logits(tmp_path / "child", write_sae(tmp_path / "sae", 0), HOOKPOINT)
    assert effects is not None
    for feature in effects(0):
        assert {feature[side][0][0] for side in ("raised", "lowered")} == {START, END}


peft = pytest.importorskip("peft")


def write_adapter(folder: Path, n_rows: int, **settings: object):
    """An adapter to a small model with resized embeddings, and what peft makes of both."""
    model = small_model(N_IDS)
    model.resize_token_embeddings(n_rows, mean_resizing=False)
    config = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings
    made = peft.get_peft_model(model, peft.LoraConfig(**config))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)
    made.save_pretrained(folder, save_embedding_layers=True)
    return made.merge_and_unload()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=["saved", "trained"])
def test_an_adapter_to_a_resized_model_brings_its_rows_and_its_tokenizer(
    plain: Path, chat: Path, tmp_path: Path, settings: dict
):
    parent = model_folder(tmp_path / "parent", plain, N_IDS)
    expected = write_adapter(tmp_path / "adapter", N_IDS + 2, **settings)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "adapter" / name).write_bytes((chat / name).read_bytes())
    block = {"folder": str(tmp_path / "adapter"), "parent": "base", "dtype": "float32"}
    facts = apply_adapter(block, "tuned", ["base"], parent, tmp_path / "tuned")
    assert (
        "the adapter comes with embeddings of 302 rows, and the parent has 300; the model has 302" in facts["warnings"]
    )
    ids = torch.arange(N_IDS - 14, N_IDS + 2).unsqueeze(0)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, expected(ids).logits)
    own = AutoTokenizer.from_pretrained(tmp_path / "tuned")
    assert (own.convert_tokens_to_ids(END), own.chat_template) == (N_IDS + 1, TEMPLATE)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_one_resized_embedding_is_refused(plain: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    parent = model_folder(tmp_path / "parent", plain, N_IDS)
    write_adapter(tmp_path / "adapter", N_IDS + 2)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "lm_head" not in name}, path)
    block = {"folder": str(tmp_path / "adapter"), "parent": "base", "dtype": "float32"}
    with pytest.raises(InputError, match=r"must hold whole embeddings of one size \(lm_head, model\.embed_tokens\)"):
        apply_adapter(block, "tuned", ["base"], parent, tmp_path / "tuned")
