"""Models with other tokens than the run's: what all share is compared, and nothing else is read."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from saelineage.activations import ActivationShard, dump_shards
from saelineage.errors import InputError
from saelineage.foreign.tokenizers import LEAVE_OUT
from saelineage.lineage.ablations import _batches
from saelineage.models.loading import evaluate, load_model
from saelineage.models.merging.choosing import Measuring, mean_divergence
from saelineage.models.merging.merge import merged_state
from saelineage.models.merging.parents import open_parents
from saelineage.models.vocabularies import common_ids, share_rows, shared_ids
from saelineage.models.vocabulary_notes import vocabulary_notes
from saelineage.saes.batches import Dump
from saelineage.saes.sae import Sae
from saelineage.tokens import TokenRows, write_rows, write_sidecar
from tests.merges import merge, settings
from tests.vocabularies import END, N_IDS, START, model_folder, small_model, tokenizer_folder

N_CTX = 16
HOOKPOINT = "model.layers.1.output"
TALK = [f"{START}The cat sat on the mat.{END}"] * 40
START_ID, END_ID = N_IDS, N_IDS + 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`plain` and `chat` tokenizers, and rows of a `text` without and a `talk` with control tokens, by the latter."""
    root = tmp_path_factory.mktemp("vocabularies")
    plain, chat = tokenizer_folder(root / "plain"), tokenizer_folder(root / "chat", START, END)
    rows = {}
    for name, documents in {"text": ["The cat sat on the mat."] * 40, "talk": TALK}.items():
        path = root / f"{name}.npy"
        write_sidecar(path, write_rows(documents, chat, N_CTX, None, path, "ids"))
        rows[name] = TokenRows(path)
    return SimpleNamespace(plain=plain, chat=chat, rows=rows)


def test_the_sidecar_counts_the_added_tokens_of_the_rows(made):
    ids, info = made.rows["talk"].ids, made.rows["talk"].info
    assert info["n_ids"] == N_IDS + 2
    assert info["added_tokens"] == {
        token: {"id": number, "n": int((ids == number).sum())}
        for token, number in {"<s>": 0, "</s>": 1, START: START_ID, END: END_ID}.items()
    }
    assert set(made.rows["text"].info["added_tokens"]) == {"<s>", "</s>"}


def test_rows_beyond_the_tokenizer_change_no_loss(made, tmp_path: Path):
    losses = []
    for n_rows in (N_IDS + 2, N_IDS + 20):
        folder = model_folder(tmp_path / str(n_rows), made.chat, n_rows)
        model = load_model(folder)
        rows, facts = share_rows(model, folder, made.rows, "mine")
        losses.append(evaluate(model, rows["talk"], 4))
        assert facts == {"n_rows": n_rows, "n_ids": 302, "unshared": {}, "read_instead": None, "left_out": {}}
    assert losses[0] == pytest.approx(losses[1])
    whole = evaluate(load_model(folder), made.rows["talk"], 4)  # over all 320 logits
    assert whole["loss"] > losses[1]["loss"] + 0.01


@pytest.mark.parametrize("n_rows", [N_IDS, N_IDS + 4], ids=["no row", "a row of the padding"])
def test_a_token_that_only_the_run_has_is_refused_with_its_count(made, tmp_path: Path, n_rows: int):
    folder = model_folder(tmp_path / "base", made.plain, n_rows)
    n_start, n_end = (made.rows["talk"].info["added_tokens"][token]["n"] for token in (START, END))
    message = (
        rf"^models\.base: the text holds 2 of the run's tokens that the model does not share, .* "
        rf"'<\|im_end\|>' {n_end} times, '<\|im_start\|>' {n_start} times; set tokens\.unshared: leave_out"
    )
    with pytest.raises(InputError, match=message):
        share_rows(load_model(folder), folder, made.rows, "base")
    rows, facts = share_rows(load_model(folder), folder, {"text": made.rows["text"]}, "base")  # harmless
    assert (facts["unshared"], rows["text"].predicted(range(2)).all()) == ({}, True)


@pytest.mark.parametrize("n_rows", [N_IDS, N_IDS + 4], ids=["no row", "a row of the padding"])
def test_left_out_tokens_are_read_as_eos_and_counted_nowhere(made, tmp_path: Path, n_rows: int):
    folder, talk = model_folder(tmp_path / "base", made.plain, n_rows), made.rows["talk"]
    model = load_model(folder)
    rows, facts = share_rows(model, folder, made.rows, "base", LEAVE_OUT)
    stored = np.asarray(talk.ids).astype(np.int64)
    control = np.isin(stored, [START_ID, END_ID])
    assert facts["left_out"] == {"text": 0, "talk": int(control.sum())}
    assert (facts["unshared"], facts["read_instead"]) == ({START: START_ID, END: END_ID}, "</s>")
    every = range(len(stored))
    assert np.array_equal(rows["talk"].read(every), np.where(control, 1, stored))
    assert np.array_equal(rows["talk"].predicted(every), ~control)
    assert np.array_equal(rows["talk"].compared(every), talk.text_mask(every) & ~control)
    # The loss, computed anew: over 300 ids, on the targets that are shared.
    ids = torch.from_numpy(np.where(control, 1, stored))
    with torch.no_grad():
        logits = small_model(n_rows)(input_ids=ids).logits[:, :-1, :N_IDS].double()
    losses = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    counted = torch.from_numpy(~control[:, 1:])
    measured = evaluate(model, rows["talk"], 4)
    assert measured["loss"] == pytest.approx(float(losses[counted].mean()), rel=1e-5)
    assert measured["n_predictions"] == int(counted.sum())


def test_neither_saes_nor_features_nor_ablations_see_left_out_tokens(made, tmp_path: Path):
    folder, talk = model_folder(tmp_path / "base", made.plain, N_IDS), made.rows["talk"]
    model = load_model(folder)
    rows = share_rows(model, folder, made.rows, "base", LEAVE_OUT).rows["talk"]
    paths = [tmp_path / "base.safetensors", tmp_path / "child.safetensors"]
    every = range(len(talk.ids))
    dump_shards(model, {HOOKPOINT: paths[0]}, rows, every, 4, "float32")
    dump_shards(small_model(N_IDS + 2), {HOOKPOINT: paths[1]}, talk, every, 4, "float32")
    base, child = map(ActivationShard, paths)
    assert torch.equal(base.positions(), child.positions())  # so that the features are aligned
    left_out = np.isin(np.asarray(talk.ids).reshape(-1)[base.positions().numpy()], [START_ID, END_ID])
    assert np.array_equal(base.norms().isnan().numpy(), left_out)
    assert not child.norms().isnan().any()
    for ratio in (None, 10.0):
        assert len(Dump(paths[:1], ratio)) == len(left_out) - left_out.sum()
    sae = Sae("topk", 16, 8, 2)
    n_tokens = sum(len(batch.row) for batch in _batches(model, sae, HOOKPOINT, rows, 4, None))
    assert n_tokens == len(left_out) - left_out.sum()


def test_other_ids_without_a_row_are_refused_whatever_is_set(made, tmp_path: Path):
    folder = model_folder(tmp_path / "small", made.chat, 200)
    with pytest.raises(InputError, match=r"knows ids 0 to 199, but the run's tokens hold id \d+; set tokenizer:"):
        share_rows(load_model(folder), folder, made.rows, "small", LEAVE_OUT)


def test_bos_and_eos_of_text_may_have_other_names(made, tmp_path: Path):
    folder = model_folder(tmp_path / "base", made.chat, N_IDS + 2)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"][1]["content"] = "<|end|>"
    tokenizer["model"]["vocab"]["<|end|>"] = tokenizer["model"]["vocab"].pop("</s>")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert share_rows(load_model(folder), folder, made.rows, "base").facts["unshared"] == {}


def test_ids_are_shared_where_both_have_the_same_token(made):
    assert shared_ids((made.plain, made.chat)) == list(range(N_IDS))
    assert shared_ids((made.chat, made.chat)) == list(range(N_IDS + 2))


def test_models_are_compared_over_the_ids_that_both_share(made, tmp_path: Path):
    base = model_folder(tmp_path / "base", made.plain, N_IDS + 4)
    chat = model_folder(tmp_path / "chat", made.chat, N_IDS + 2)
    facts = [share_rows(load_model(each), each, made.rows, each.name, LEAVE_OUT).facts for each in (base, chat)]
    assert common_ids(facts, (base, chat)) == list(range(N_IDS))
    assert common_ids(facts[1:], (chat, chat)) == list(range(N_IDS + 2))
    # Rows of padding are no tokens, although the text holds nothing that only one of the two has.
    facts = [share_rows(load_model(each), each, {"text": made.rows["text"]}, "m").facts for each in (base, chat)]
    assert common_ids(facts, (base, chat)) == list(range(N_IDS))
    # EOS of text counts under any name, if both have a row for it.
    assert common_ids(facts, (base, chat), ends=[0, END_ID]) == [*range(N_IDS), END_ID]
    assert common_ids([of | {"n_rows": N_IDS} for of in facts], (base, chat), ends=[END_ID]) == list(range(N_IDS))


def test_the_page_says_what_is_left_out(made):
    same = {"n_rows": 320, "n_ids": 302, "unshared": {}, "read_instead": None, "left_out": {}}
    assert vocabulary_notes({"a": same, "b": same}) == []
    left_out = {"talk.train": 1234, "talk.validation": 5}
    base = same | {"n_rows": 300, "unshared": {START: 300, END: 301}, "read_instead": "</s>", "left_out": left_out}
    assert vocabulary_notes({"base": base, "chat": same}) == [
        "The models' embeddings have different numbers of rows ('base' 300, 'chat' 320). The 302 ids of the run's "
        "tokenizer are compared, as far as a model has them; losses are over the logits of these alone.",
        "'base' does not share 2 of the run's tokens ('<|im_start|>', '<|im_end|>'). It reads '</s>' in their place, "
        "and these places are left out of its SAEs, losses and comparisons (1,234 in talk.train, 5 in "
        "talk.validation).",
    ]


EMBEDDING, HEAD, OTHER = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_a_merge_has_the_first_parents_vocabulary(made, tmp_path: Path, t: float):
    base = model_folder(tmp_path / "base", made.plain, N_IDS + 4)  # 4 rows of padding
    chat = model_folder(tmp_path / "chat", made.chat, N_IDS + 2, seed=1)
    states = {folder: load_file(folder / "model.safetensors") for folder in (base, chat)}
    for first, second, only_first, left_out in ((base, chat, 4, 2), (chat, base, 2, 0)):
        with pytest.raises(InputError, match=r"'chat' has 302.* and 2 differ, such as '<\|im_end"):
            merge([first, second], tmp_path / "refused")
        merge([first, second], tmp_path / "merged", method="linear", t=t, vocabulary="parent")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
        a, b = states[first], states[second]
        for name in (EMBEDDING, HEAD):
            expected = (1 - t) * a[name][:N_IDS] + t * b[name][:N_IDS]
            torch.testing.assert_close(merged[name][:N_IDS], expected)
            assert torch.equal(merged[name][N_IDS:], a[name][N_IDS:])
        torch.testing.assert_close(merged[OTHER], (1 - t) * a[OTHER] + t * b[OTHER])
        record = json.loads((tmp_path / "merged" / "merge.json").read_text())["vocabulary_rows"]
        assert record["rows"] == [len(a[EMBEDDING]), len(b[EMBEDDING])]
        assert (record["rows_merged"], record["rows_of_parent"]) == (N_IDS, only_first)
        assert record["tokens_left_out"] == left_out
        assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
        # A sweep measures the same merge.
        own = settings([first.name, second.name], method="linear", t=t)
        swept = merged_state(open_parents([first, second], None, None, "parent"), own)
        assert all(torch.equal(swept[name], merged[name]) for name in swept)


def test_tokens_that_not_all_models_have_are_left_out(made, tmp_path: Path):
    base = model_folder(tmp_path / "base", made.plain, N_IDS + 4)
    chats = [model_folder(tmp_path / f"chat{seed}", made.chat, N_IDS + 2, seed) for seed in (1, 2)]
    # The tokenizer is that of a parent without other tokens, wherever it stands.
    facts = merge([chats[0], base, chats[1]], tmp_path / "merged", method="linear", vocabulary="intersect")
    assert "the merge has not the tokens" in facts["warnings"][0]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    states = [load_file(folder / "model.safetensors") for folder in (base, *chats)]
    assert merged.config.vocab_size == N_IDS
    for name in (EMBEDDING, HEAD):
        mean = sum(state[name][:N_IDS] for state in states) / 3
        torch.testing.assert_close(merged.state_dict()[name], mean)
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    others = tokenizer_folder(tmp_path / "other tokens", "<other>")
    other = model_folder(tmp_path / "other", others, N_IDS + 1)
    with pytest.raises(InputError, match="'intersect' must be used with a parent that has only tokens that all"):
        merge([chats[0], other], tmp_path / "refused", vocabulary="intersect")


def test_a_base_with_fewer_tokens_gives_differences_of_the_shared_rows(made, tmp_path: Path):
    base = model_folder(tmp_path / "base", made.plain, N_IDS)
    chat = model_folder(tmp_path / "chat", made.chat, N_IDS + 2, seed=1)
    own = {"base": base, "method": "task_arithmetic", "lambda": 0.5, "vocabulary": "parent"}
    merge([chat], tmp_path / "merged", **own)
    merged, a, b = (load_file(folder / "model.safetensors")[HEAD] for folder in (tmp_path / "merged", chat, base))
    torch.testing.assert_close(merged[:N_IDS], (a[:N_IDS] + b) / 2)
    assert torch.equal(merged[N_IDS:], a[N_IDS:])


@pytest.mark.parametrize("vocabulary", ["parent", "intersect"])
def test_a_divisor_is_chosen_by_the_tokens_that_models_share(made, tmp_path: Path, vocabulary: str):
    base = model_folder(tmp_path / "base", made.plain, N_IDS + 20)  # with rows of padding
    chat = model_folder(tmp_path / "chat", made.chat if vocabulary == "parent" else made.plain, N_IDS + 12, seed=1)
    dare = settings(["chat"], method="dare_linear", rescale="q", density=1.0, vocabulary=vocabulary)
    measuring = Measuring({"text": made.rows["text"]}, 8, torch.device("cpu"), "float32", LEAVE_OUT)
    changes = [mean_divergence([chat], base, dare | {"q": q}, measuring) for q in (1.0, 0.5)]
    assert changes[0] == pytest.approx(0, abs=1e-6)
    assert 1e-4 < changes[1] < 100


def test_padded_rows_are_trimmed_or_kept_as_the_first_parent_has_them(made, tmp_path: Path):
    folders = [model_folder(tmp_path / str(n_rows), made.plain, n_rows, seed=n_rows) for n_rows in (304, 320)]
    for first, second in (folders, folders[::-1]):
        merge([first, second], tmp_path / "merged", method="linear", dtype="float32")
        merged, a, b = (load_file(each / "model.safetensors")[HEAD] for each in (tmp_path / "merged", first, second))
        torch.testing.assert_close(merged[:304], (a[:304] + b[:304]) / 2)
        assert torch.equal(merged[304:], a[304:])


def test_a_token_in_what_is_padding_of_the_other_is_not_averaged_with_it(made, tmp_path: Path):
    base, chat = model_folder(tmp_path / "base", made.plain, 304), model_folder(tmp_path / "chat", made.chat, 304, 1)
    merge([chat, base], tmp_path / "merged", vocabulary="parent")
    merged, a = (load_file(folder / "model.safetensors")[EMBEDDING] for folder in (tmp_path / "merged", chat))
    assert torch.equal(merged[N_IDS : N_IDS + 2], a[N_IDS : N_IDS + 2])
    assert not torch.equal(merged[N_IDS + 2 :], a[N_IDS + 2 :])  # padding of both


def test_tied_parents_of_unequal_rows_are_merged_too(made, tmp_path: Path):
    tied = model_folder(tmp_path / "tied", made.plain, 304, tie_word_embeddings=True)
    untied = model_folder(tmp_path / "untied", made.plain, 320, 1)
    merge([tied, untied], tmp_path / "merged", method="linear")
    merged, b = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", untied))
    a = load_file(tied / "model.safetensors")[EMBEDDING]
    torch.testing.assert_close(merged[HEAD], (a + b[HEAD][:304]) / 2)
