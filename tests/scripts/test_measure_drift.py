"""How much changed on an edge, as the rule measures it: known values for models that were changed on purpose."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedModel

from measure_drift import Model, by_parent, measure_drift, split_dumps
from saelineage.activations import ActivationShard, dump_shards
from saelineage.files.atomic import read_json, write_json
from saelineage.foreign.tokenizers import LEAVE_OUT
from saelineage.models.loading import load_model
from saelineage.models.training import save_model
from saelineage.saes.sae import Sae, save_sae
from saelineage.tokens import TokenRows
from tests.vocabularies import END, N_IDS, START, model_folder, tokenizer_folder

HOOKPOINT = "model.layers.0.mlp.down_proj.input"
CORPORA = ("words", "sums")
SCALE = 1.5
CPU = torch.device("cpu")


def made(
    root: Path, name: str, model: PreTrainedModel, folder: Path, rows: dict[str, TokenRows], **fvu: float
) -> Model:
    """The files of a model: its dumps of the probe, an SAE, and the SAE's metrics with an fvu by corpus."""
    dumps = {corpus: str(root / f"dumps/{name}.{corpus}.safetensors") for corpus in rows}
    for corpus, of_corpus in rows.items():
        dump_shards(model, {HOOKPOINT: dumps[corpus]}, of_corpus, range(len(of_corpus.ids)), 8, "float32")
    save_sae(Sae("relu", ActivationShard(dumps[next(iter(rows))]).d_in, 4), root / "saes" / name / "seed0", {})
    metrics = {"sae": "seed0", "corpora": {key: {"fvu": value} for key, value in fvu.items()}, "pooled": {"fvu": 0.2}}
    write_json(root / f"{name}.json", {"saes": [{"sae": "other"}, metrics]})
    listed = {corpus: [path] for corpus, path in dumps.items()}
    return Model(folder, root / "saes" / name / "seed0", listed, str(root / f"{name}.json"))


@pytest.fixture(scope="module")
def models(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """`base`; `same`, a copy of it; `louder`, whose activations at the hookpoint are 1.5 times base's; and `b`."""
    root = tmp_path_factory.mktemp("models")
    probe = {corpus: TokenRows(tiny.tokens[corpus]["probe"]) for corpus in CORPORA}
    base, other = load_model(tiny.models["a"]), load_model(tiny.models["b"])
    louder = load_model(tiny.models["a"])
    with torch.no_grad():
        louder.model.layers[0].mlp.up_proj.weight.mul_(SCALE)
    save_model(louder, tiny.tokenizer, root / "louder")
    fvus = {"words": 0.1, "sums": 10.0}
    return {
        "base": made(root, "base", base, tiny.models["a"], probe, **fvus),
        "same": made(root, "same", base, tiny.models["a"], probe, **fvus),
        "louder": made(root, "louder", louder, root / "louder", probe, **fvus | {"words": 0.15}),
        "b": made(root, "b", other, tiny.models["b"], probe, **fvus),
    }


@pytest.fixture
def measure(models: dict[str, Model], tiny: SimpleNamespace, tmp_path: Path) -> Callable:
    """Measure edges; gives the entry of each."""

    def run(*edges: tuple[str, str], name: str = "drift.json") -> list[dict]:
        rows = {corpus: str(tiny.tokens[corpus]["validation"]) for corpus in CORPORA}
        measure_drift(list(edges), models, rows, 3, 5, str(tmp_path / name), CPU)
        return read_json(tmp_path / name)["edges"]

    return run


def test_equal_models_have_changed_by_exactly_nothing(measure):
    (edge,) = measure(("base", "same"))
    assert (edge["parent"], edge["child"]) == ("base", "same")
    for figures in (edge["corpora"]["words"], edge["corpora"]["sums"], edge["pooled"]):
        assert (figures["kl"], figures["kl_reverse"], figures["drift"], figures["visible"]) == (0.0, 0.0, 0.0, False)
    assert edge["weights"]["all"]["relative_change"] == 0.0
    assert edge["weights"]["left_out"] == []


def test_a_child_of_scaled_activations_has_moved_by_what_its_parents_own_say(measure, models, tiny):
    (edge,) = measure(("base", "louder"))
    acts = {corpus: ActivationShard(models["base"].dumps[corpus][0]).acts().double() for corpus in CORPORA}
    acts["pooled"] = torch.cat(list(acts.values()))
    found = {**edge["corpora"], "pooled": edge["pooled"]}
    for corpus, x in acts.items():
        expected = (SCALE - 1) ** 2 * x.square().sum() / (x - x.mean(0)).square().sum()
        assert found[corpus]["drift"] == pytest.approx(float(expected), rel=1e-5)
        assert (found[corpus]["n_tokens"], found[corpus]["n_left_out"]) == (len(x), 0)
    # Both SAEs count, and the larger share decides: 0.15 of words and 10 of sums are left unexplained.
    assert [found[corpus]["fvu_child"] for corpus in ("words", "sums", "pooled")] == [0.15, 10.0, 0.2]
    assert [found[corpus]["unexplained"] for corpus in ("words", "sums", "pooled")] == [0.15, 10.0, 0.2]
    assert [found[corpus]["visible"] for corpus in ("words", "sums", "pooled")] == [True, False, True]
    # Of layer 0 the one matrix has changed by half of its norm.
    layer = load_model(models["base"].folder).model.layers[0]
    norms = [float(weight.detach().double().square().sum()) for weight in layer.parameters()]
    up = float(layer.mlp.up_proj.weight.detach().double().square().sum())
    layers = edge["weights"]["layers"]
    assert layers["model.layers.0"]["relative_change"] == pytest.approx(0.5 * (up / sum(norms)) ** 0.5, rel=1e-5)
    assert layers["model.layers.1"]["relative_change"] == layers["lm_head"]["relative_change"] == 0.0
    # The divergence is over at most five validation rows of each corpus, at equal distances.
    validation = {corpus: TokenRows(tiny.tokens[corpus]["validation"]) for corpus in CORPORA}
    rows = {corpus: of_corpus.read(of_corpus.spread(5)) for corpus, of_corpus in validation.items()}
    pair = [load_model(models[name].folder) for name in ("base", "louder")]
    divergences = []
    for corpus in CORPORA:
        with torch.no_grad():
            log_p, log_q = (m(torch.from_numpy(rows[corpus])).logits[:, :-1].double().log_softmax(-1) for m in pair)
        divergences.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
        assert found[corpus]["kl"] == pytest.approx(divergences[-1], rel=1e-4)
        assert found[corpus]["n_predictions"] == 5 * (tiny.n_ctx - 1)
    assert found["pooled"]["kl"] == pytest.approx(sum(divergences) / 2, rel=1e-4)


def test_edges_are_written_in_their_own_order_whichever_are_measured_together(measure, tmp_path):
    edges = [("base", "louder"), ("same", "b"), ("base", "b")]
    together = measure(*edges)
    assert [(edge["parent"], edge["child"]) for edge in together] == edges
    assert by_parent(edges) == {"base": ["louder", "b"], "same": ["b"]}
    assert together[2] == measure(("base", "b"), name="alone.json")[0]
    measure(*edges, name="again.json")
    assert (tmp_path / "drift.json").read_bytes() == (tmp_path / "again.json").read_bytes()


def test_models_of_other_tokens_are_compared_on_what_both_share(tmp_path: Path):
    from saelineage.models.vocabularies import share_rows
    from saelineage.tokens import write_rows, write_sidecar

    plain, chat = tokenizer_folder(tmp_path / "plain"), tokenizer_folder(tmp_path / "chat", START, END)
    path = tmp_path / "talk.npy"
    write_sidecar(path, write_rows([f"{START}The cat sat on the mat.{END}"] * 40, chat, 16, None, path, "ids"))
    rows = {"talk": TokenRows(path)}
    folders = {
        "base": model_folder(tmp_path / "base", plain, N_IDS),
        "chat": model_folder(tmp_path / "tuned", chat, N_IDS + 2),
    }
    models = {}
    for name, folder in folders.items():
        model = load_model(folder)
        read = share_rows(model, folder, rows, name, LEAVE_OUT).rows
        models[name] = made(tmp_path, name, model, folder, read, talk=0.1)
    measure_drift([("base", "chat")], models, {"talk": str(path)}, 4, 99, str(tmp_path / "d.json"), CPU, LEAVE_OUT)
    (edge,) = read_json(tmp_path / "d.json")["edges"]
    figures, shared = edge["corpora"]["talk"], rows["talk"].ids[:, 1:] < N_IDS
    assert figures["n_predictions"] == int(shared.sum())
    assert figures["n_left_out"] > 0
    # The models differ in nothing but two rows; base reads EOS in place of their tokens, so it predicts otherwise.
    assert figures["kl"] > 0
    assert edge["weights"]["all"]["relative_change"] == 0.0
    assert edge["weights"]["left_out"] == []


def test_shards_are_listed_by_model_then_corpus():
    found = split_dumps(list("abcdefgh"), ["m", "n"], ["x", "y"])
    assert found == {"m": {"x": ["a", "b"], "y": ["c", "d"]}, "n": {"x": ["e", "f"], "y": ["g", "h"]}}
