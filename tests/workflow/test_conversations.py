"""A run on conversations, with two models that differ in the embeddings of the template's control tokens alone."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saelineage.corpora.messages import ROLES
from saelineage.files.atomic import read_json
from saelineage.tokens import TokenRows
from tests.chats import chat_tokenizer, said
from tests.workflow.conftest import Checkout

CONFIG = Path(__file__).with_name("chat.yaml")
N_CTX = 96
ANIMALS, PLACES = ("cat", "dog", "owl", "hen", "fox"), ("mat", "wall", "roof", "road")
CONTROL = tuple(f"<|{role}-{part}|>" for role in ROLES for part in range(4))
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '-0|><|' + m.role + '-1|>' + m.content + '<|' + m.role + '-2|><|' "
    "+ m.role + '-3|>' }}{% endfor %}"
)
"""Four control tokens of its own around each role's message."""
GENERATION = {"temperature": 0.5, "do_sample": True}


def talk(random: np.random.Generator) -> list[dict[str, str]]:
    animal, other, place = random.choice(ANIMALS), random.choice(ANIMALS), random.choice(PLACES)
    return said(
        ("system", f"You are a helpful {random.choice(ANIMALS)}."),
        ("user", f"Who sat on the {place}?"),
        ("assistant", f"The {animal} and the {other} sat on the {place}."),
    )


def write_models(folder: Path) -> None:
    """Write a random model that takes all control tokens for one, as if it had never seen them, and one that does not.

    Without attention all other tokens have the same activations in both.
    """
    from saelineage.models.training import new_mistral, save_model
    from saelineage.tokens import load_tokenizer, special_ids

    settings = {"seed": 0, "n_layers": 1, "d_model": 32, "d_mlp": 48, "n_heads": 4, "n_kv_heads": 2}
    settings |= {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_embeddings": False}
    tokenizer = load_tokenizer(folder / "tokenizer")
    ids = [tokenizer.token_to_id(token) for token in CONTROL]
    model = new_mistral(settings, tokenizer.get_vocab_size(), N_CTX, special_ids(folder / "tokenizer"))
    model.model.layers[0].self_attn.o_proj.weight.data *= 0
    model.generation_config.update(**GENERATION)
    save_model(model, folder / "tokenizer", folder / "tuned")
    embeddings = model.get_input_embeddings().get_parameter("weight")
    embeddings.data[ids] = embeddings.data[ids[0]].clone()
    save_model(model, folder / "tokenizer", folder / "base")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout(tmp_path_factory.mktemp("chat"))
    random = np.random.default_rng(0)
    rows = [json.dumps({"messages": talk(random)}) for _ in range(1000)]
    (checkout.folder / "talk.jsonl").write_text("\n".join(rows))
    chat_tokenizer(checkout.folder / "tokenizer", TEMPLATE, control=CONTROL, save_jinja_files=False)
    write_models(checkout.folder)
    done = checkout.snakemake("--cores", "2", config=CONFIG)
    assert done.returncode == 0, done.stderr + done.stdout
    return checkout


@pytest.fixture(scope="module")
def run(checkout: Checkout) -> Path:
    return checkout.folder / "results" / "chat"


def test_features_of_the_template_are_new_and_nothing_inherited_is_one(run: Path):
    table = pd.read_csv(run / "report/tables/mlp/classes.csv").set_index(["side", "verdict", "class"])
    for side, verdict in (("child", "inherited"), ("parent", "persists")):
        assert table.loc[(side, verdict, "template"), "share"] == 0
    new = table.loc[("child", "new")]
    assert new.loc["template", "low"] > table.loc[("child", "inherited", "template"), "high"]
    assert new.loc["template", "share"] > 3 * new.loc[list(ROLES), "share"].sum()
    assert "Chat template" in (run / "report/index.html").read_text()


def test_classes_lie_beside_the_ids_and_in_the_manifest(run: Path):
    rows = TokenRows(run / "tokens/talk/probe.npy")
    assert rows.classes is not None
    # The first token opens the first turn. The classes of a row: template, system, template, user, ...
    assert sorted(np.unique(rows.classes).tolist()) == [0, 1, 2, 3, 4]
    assert {"probe.npy", "probe.classes.npy", "probe.json"} == set(
        read_json(run / "tokens/talk/probe.manifest.json")["files"]
    )


def test_features_are_described_by_the_class_of_their_tokens(run: Path):
    labels = pd.read_parquet(next((run / "labels/mlp/tuned").glob("*.parquet")))
    of_class = labels[labels["kind"] == "class"]
    assert set(of_class["label"]) == {"template", "system", "user", "assistant"}
    # A token has one class, so the shares of a feature's firings sum to 1.
    assert of_class.groupby("latent")["precision"].sum().to_numpy() == pytest.approx(1)


def test_imported_models_keep_template_and_generation_config(run: Path):
    assert read_json(run / "models/tuned/tokenizer_config.json")["chat_template"] == TEMPLATE
    assert read_json(run / "models/tuned/generation_config.json").items() >= GENERATION.items()


def test_nothing_is_left_to_do(checkout: Checkout):
    assert checkout.stale_jobs(CONFIG) <= {("write_report", "page")}
