"""config/compare.yaml as a user types it: a base, a fine-tune, a text."""

import json
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, set_seed

from saelineage.corpora.samples.kinds import sample_documents
from saelineage.models.training import save_model
from saelineage.tokens import load_tokenizer, save_tokenizer, train_tokenizer
from tests.workflow.conftest import Checkout

D_VOCAB, N_PADDED, N_POSITIONS, ADDED = 300, 320, 32, "<|im_start|>"
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": N_POSITIONS},
    "llama": {
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"max_position_embeddings": N_POSITIONS},
    },
}
SMALL = (
    "tokens={max_tokens: {train: 4096, validation: 1024, probe: 2048}}",
    "activations={max_tokens: 4096}",
    "saes={expansion_factor: 2, k: 4, n_tokens: 4096, anchored: {n_tokens: 2048}}",
    "lineage={n_replicates: 10, ablated_rows: 4, ablated_features: 2}",
    "threads={models: 1}",
)
"""Overrides of sizes alone, after --config."""


def write_models(folder: Path, model_type: str) -> None:
    """Two random models, of which the second has added a token and padded its embedding, and a text of paragraphs."""
    texts = list(sample_documents("english", 60_000, seed=0))
    (folder / "text.txt").write_text("\n\n".join(text.strip() for text in texts), encoding="utf-8")
    tokenizer = train_tokenizer(texts, D_VOCAB)
    for seed, (name, n_rows, added) in enumerate((("base", D_VOCAB, []), ("tuned", N_PADDED, [ADDED]))):
        tokenizer.add_special_tokens(added)
        save_tokenizer(tokenizer, folder / f"tokenizer_{name}", N_POSITIONS)
        set_seed(seed)
        config = CONFIG_MAPPING[model_type](vocab_size=n_rows, **SPECIAL, **SIZES[model_type])
        save_model(AutoModelForCausalLM.from_config(config).float(), folder / f"tokenizer_{name}", folder / name)


@pytest.mark.parametrize(("model_type", "hookpoint"), [("gpt2", "transformer.h.1.output")])
def test_three_keys_run_from_models_to_the_page_which_says_what_was_assumed(
    tmp_path: Path, model_type: str, hookpoint: str
):
    checkout = Checkout(tmp_path / "checkout")
    write_models(checkout.folder, model_type)
    given = ("--config", "base=base", "tuned=./tuned", "text=text.txt", *SMALL)
    done = checkout.snakemake("--cores", "2", *given, config=checkout.folder / "config" / "compare.yaml")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assumed = f"the hookpoint is {hookpoint}, the residual stream after layer 1 of the 2 layers"
    assert done.stderr.count(f"note: {assumed}") == 1  # not once for every job
    page = (checkout.folder / "results" / "compare" / "report" / "index.html").read_text(encoding="utf-8")
    assert assumed in page
    summary = json.loads((checkout.folder / "results" / "compare" / "lineage" / hookpoint / "summary.json").read_text())
    assert [(edge["parent"], edge["child"]) for edge in summary["edges"]] == [("base", "tuned")]
    assert "embeddings have different numbers of rows (&#39;base&#39; 300, &#39;tuned&#39; 320)" in page
    run = checkout.folder / "results" / "compare"
    own = {name: load_tokenizer(run / "models" / name).token_to_id(ADDED) for name in ("base", "tuned")}
    assert own == {"base": None, "tuned": D_VOCAB}
    for path in run.glob("correlations/**/*.json"):
        assert "vocabularies differ" not in path.read_text()


def test_a_dry_run_lists_the_jobs_and_a_missing_key_ends_in_one_sentence(tmp_path: Path):
    checkout = Checkout(tmp_path / "checkout")
    write_models(checkout.folder, "llama")
    compare = checkout.folder / "config" / "compare.yaml"
    done = checkout.snakemake("-n", "--config", "base=base", "tuned=tuned", "text=text.txt", config=compare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "import_model" in done.stdout
    assert "note: the models are read in rows of 32 tokens" in done.stderr
    for given, sentence in (
        (["base=base", "tuned=tuned"], "text: must be given: a file or folder of text that both models are read on"),
        (["base=base", "tuned=tunde", "text=text.txt"], "tuned: must be a folder that exists, or owner/name"),
    ):
        done = checkout.snakemake("-n", "--config", *given, config=compare)
        assert done.returncode == 1
        assert "Traceback" not in done.stdout + done.stderr
        assert sum(line.startswith(sentence) for line in (done.stdout + done.stderr).splitlines()) == 1
