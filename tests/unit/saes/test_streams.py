"""Training SAEs while their model is read: the order of tokens, the bounded buffer, resuming, several hookpoints."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from saelineage.activations import read_activations
from saelineage.errors import InputError
from saelineage.saes import streams
from saelineage.saes import training as sae_training
from saelineage.saes.sae import Sae, save_sae
from saelineage.saes.streams import Buffer, Group, Stream, batch_key, train_streams
from saelineage.saes.training import Trained
from saelineage.tokens import TokenRows
from tests.sae_settings import SAE_SETTINGS

CPU = torch.device("cpu")
PLACES = {"early": "model.layers.0.mlp.down_proj.input", "late": "model.layers.1.output"}
D_IN = {"early": 48, "late": 32}
BUFFER_TOKENS = 500  # 31 rows of 16 ids
SETTINGS = SAE_SETTINGS | {"n_tokens": 3000, "batch_tokens": 64, "k": 4}


@pytest.fixture
def rows(tiny) -> list[TokenRows]:
    return [TokenRows(tiny.tokens[corpus]["train"]) for corpus in ("words", "sums")]


@pytest.fixture
def stream(model, rows) -> Callable[..., Stream]:
    def make(**changes: object) -> Stream:
        given = {"max_tokens": None, "buffer_tokens": BUFFER_TOKENS, "batch_rows": 4, "dtype": "float32", "seed": 3}
        return Stream(model, PLACES, rows, **(given | changes))

    return make


def text_tokens(rows: list[TokenRows]) -> dict[tuple[int, int], list[int]]:
    """The places of text tokens in each row, by corpus and row."""
    masks = {
        (corpus, row): of.text_mask(range(row, row + 1))[0]
        for corpus, of in enumerate(rows)
        for row in range(len(of.ids))
    }
    return {place: np.flatnonzero(mask).tolist() for place, mask in masks.items()}


def order(stream: Stream, rows: list[TokenRows], numbers: range) -> list[tuple[int, int, int]]:
    """Corpus, row and place of every token of some buffers, in the order of the buffers."""
    of_rows, tokens = text_tokens(rows), []
    for number in numbers:
        read = [(*place, token) for place in map(tuple, stream.places(number).tolist()) for token in of_rows[place]]
        shuffled: list = [None] * len(read)
        for token, place in zip(read, stream.shuffled(number, len(read)), strict=True):
            shuffled[place] = token
        tokens += shuffled
    return tokens


def test_each_pass_is_a_permutation_of_all_tokens_and_no_two_are_alike(stream, rows):
    made = stream()
    n_rows = sum(len(of.ids) for of in rows)
    assert made.n_buffers == math.ceil(n_rows / 31) >= 3
    passes = [order(made, rows, range(first, first + made.n_buffers)) for first in (0, made.n_buffers)]
    everything = [(*place, token) for place, tokens in text_tokens(rows).items() for token in tokens]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(everything)
    assert len(everything) == made.n_tokens
    assert passes[0] != passes[1]
    # Within a buffer, tokens of a row are apart, and both corpora are mixed.
    assert {corpus for corpus, _, _ in passes[0][:100]} == {0, 1}
    assert np.mean([a[:2] == b[:2] for a, b in zip(passes[0], passes[0][1:], strict=False)]) < 0.1


def test_a_buffer_is_bounded_and_holds_the_activations_of_its_tokens(stream, rows, model):
    made = stream()
    for number in (0, 4):
        buffer = made.buffer(number)
        tokens = order(made, rows, range(number, number + 1))
        for name, place in PLACES.items():
            assert buffer.acts[name].shape == (len(tokens), D_IN[name])
            assert len(tokens) <= BUFFER_TOKENS
            for at in (0, 7, len(tokens) - 1):
                corpus, row, token = tokens[at]
                ids = torch.from_numpy(rows[corpus].read(range(row, row + 1)))
                expected = read_activations(model, place, ids)[0, token]
                assert torch.allclose(buffer.acts[name][at], expected, atol=1e-5)
                assert float(buffer.norms[name][at]) == pytest.approx(float(expected.norm()), rel=1e-4)


def test_a_buffer_s_memory_is_used_again(stream):
    made = stream()
    assert made.buffer(0).acts["late"].data_ptr() == made.buffer(1).acts["late"].data_ptr()


def test_max_tokens_limits_each_corpus_as_in_a_dump(stream, rows):
    made = stream(max_tokens=200)  # 12 rows of 16 ids each
    places = {tuple(place) for number in range(made.n_buffers) for place in made.places(number).tolist()}
    assert places == {(corpus, row) for corpus in (0, 1) for row in range(12)}


def test_tokens_that_the_model_does_not_share_are_left_out(model, rows):
    common = int(np.bincount(rows[0].ids[rows[0].text_mask(range(len(rows[0].ids)))].astype(int)).argmax())
    read = [of.read_with({common: 1}) for of in rows]
    made = Stream(model, PLACES, read, None, BUFFER_TOKENS, 4, "float32", 3)
    n_unshared = sum(int((of.text_mask(range(len(of.ids))) & (of.ids == common)).sum()) for of in rows)
    buffers = [made.buffer(number).norms["late"].isnan().sum() for number in range(made.n_buffers)]
    assert int(sum(buffers)) == n_unshared > 100
    assert made.n_tokens == Stream(model, PLACES, rows, None, BUFFER_TOKENS, 4, "float32", 3).n_tokens - n_unshared


class Fixed(Stream):
    """A stream of given buffers, at one hookpoint."""

    def __init__(self, buffers: list[torch.Tensor]):
        self.n_tokens, self._buffers = sum(map(len, buffers)), buffers

    def buffer(self, number: int) -> Buffer:
        acts = self._buffers[number % len(self._buffers)]
        return Buffer({"late": acts}, {"late": acts.norm(dim=1)})


@pytest.fixture
def seen(monkeypatch) -> list[torch.Tensor]:
    """The batches of all trainings."""
    batches: list[torch.Tensor] = []
    step = sae_training.Training.step

    def note(self: sae_training.Training, acts: torch.Tensor) -> None:
        batches.append(acts.clone())
        step(self, acts)

    monkeypatch.setattr(sae_training.Training, "step", note)
    return batches


def group(
    settings: dict, start: Sae | None = None, hookpoint: str = "late", watch: Callable = sae_training.ignore
) -> Group:
    return Group(hookpoint, {"seed0": settings}, {"seed0": start}, CPU, watch)


def test_tokens_that_fill_no_batch_come_first_in_the_next_buffer(seen):
    acts = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    settings = SETTINGS | {"batch_tokens": 4, "n_tokens": 36, "expansion_factor": 2.0, "k": 2}
    train_streams(Fixed([acts[:10], acts[10:21], acts[21:]]), [group(settings)])
    # 7 batches in the first pass; the two tokens left over and two of the second pass are the eighth.
    assert torch.equal(torch.cat(seen), torch.cat([acts, acts[:6]]))


def test_outliers_are_left_out_and_counted(seen):
    acts = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    acts[[3, 17]] *= 1000
    settings = SETTINGS | {"batch_tokens": 4, "n_tokens": None, "max_norm_ratio": 10.0, "expansion_factor": 2.0, "k": 2}
    trained = group(settings)
    train_streams(Fixed([acts[:12], acts[12:]]), [trained])
    ordinary = [token for token in range(24) if token not in (3, 17)]
    # None trains on as many tokens as a pass has, so two of the second pass stand for those left out in the first.
    assert torch.equal(torch.cat(seen), acts[[*ordinary, 0, 1]])
    norms = acts[:12].norm(dim=1)
    assert trained.finished()["seed0"].sae.max_norm == pytest.approx(10 * float(norms.median()), rel=0.3)
    assert trained.n_left_out == 3  # one of them twice, because the second pass has begun


@pytest.fixture
def written(tmp_path) -> Callable:
    """The bytes of an SAE's weights, and its curve."""

    def write(trained: Trained) -> tuple[bytes, str]:
        save_sae(trained.sae, tmp_path / "sae", {})
        return (tmp_path / "sae" / "sae_weights.safetensors").read_bytes(), trained.curve.to_csv(index=False)

    return write


class Stopped(BaseException):
    """Ends a training, as a kill does."""


def test_a_kill_in_the_middle_of_a_buffer_changes_no_byte(stream, written, tmp_path, monkeypatch):
    """Two hookpoints, three architectures, groups of unequal length, outliers, and SAEs that are done early."""
    monkeypatch.setattr(sae_training, "LOG_EVERY_STEPS", 2)

    def groups(stops: tuple[int, ...] = ()) -> list[Group]:
        def watch(number: int, point: dict) -> None:
            if stops and point["step"] == stops[0]:
                raise Stopped

        late = SETTINGS | {"architecture": "batchtopk", "max_norm_ratio": 1.05}
        early = {"seed0": SETTINGS, "seed1": SETTINGS | {"architecture": "relu", "seed": 8}}
        return [
            group(late | {"n_tokens": 900}),
            Group("early", early, dict.fromkeys(early), CPU, watch),
            group(late | {"batch_tokens": 96}),
        ]

    whole = groups()
    train_streams(stream(), whole)
    checkpoint = tmp_path / "checkpoints" / "state.safetensors"
    for last in (6, 22, 40):  # a buffer has 7 batches of 64 tokens
        with pytest.raises(Stopped):
            train_streams(stream(), groups((last,)), checkpoint, 5)
    resumed = groups()
    train_streams(stream(), resumed, checkpoint, 5)
    for before, after in zip(whole, resumed, strict=True):
        assert after.n_left_out == before.n_left_out
        for name, sae in before.finished().items():
            assert written(after.finished()[name]) == written(sae), (before.hookpoint, name)
    assert whole[0].n_left_out > 0
    assert float(whole[0].finished()["seed0"].sae.threshold[0]) > 0


def test_saes_in_lockstep_equal_saes_alone(stream, written):
    settings = SETTINGS | {"n_tokens": 1000}
    alone = {name: group(settings, hookpoint=name) for name in PLACES}
    for of_hookpoint in alone.values():
        train_streams(stream(), [of_hookpoint])
    together = [group(settings, hookpoint=name) for name in PLACES]
    train_streams(stream(), together)
    for of_hookpoint in together:
        expected = alone[of_hookpoint.hookpoint].finished()["seed0"]
        assert written(of_hookpoint.finished()["seed0"]) == written(expected)


def test_an_sae_trained_for_no_tokens_only_gets_the_new_outlier_limit(stream):
    start = Sae("topk", 32, 64, 4)
    kept = group(SETTINGS | {"n_tokens": 0, "max_norm_ratio": 3.0}, start)
    made = stream()
    train_streams(made, [kept])
    sae, curve = kept.finished()["seed0"]
    assert curve.empty
    assert all(torch.equal(a, b) for a, b in zip(sae.parameters(), start.parameters(), strict=True))
    assert sae.max_norm == pytest.approx(3 * float(np.median(made.buffer(0).norms["late"])))


def test_a_start_of_centred_activations_gives_another(stream):
    start = Sae("topk", 32, 64, 4)
    start.centred = True
    with torch.no_grad():
        start.W_dec.copy_(
            torch.nn.functional.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(1)))
        )
        start.W_enc.copy_(start.W_dec.T)
    trained = group(SETTINGS | {"n_tokens": 640}, start)
    train_streams(stream(), [trained])
    sae = trained.finished()["seed0"].sae
    acts = torch.randn(50, 32, generator=torch.Generator().manual_seed(2))
    assert sae.centred
    assert torch.allclose(sae.encode(acts + 5), sae.encode(acts), atol=1e-3)
    assert batch_key(SETTINGS, start) != batch_key(SETTINGS, Sae("topk", 32, 64, 4))


def test_the_error_of_a_stream_is_like_that_of_a_dump(stream, rows):
    """Trained on as many tokens, in another order: on held-out tokens both leave about as much unexplained."""
    made = stream(buffer_tokens=10_000)
    assert made.n_buffers == 1
    settings = SETTINGS | {"n_tokens": 12_000}
    of_stream = group(settings)
    train_streams(stream(), [of_stream])
    of_whole = group(settings)
    train_streams(made, [of_whole])
    acts = made.buffer(0).acts["late"]

    def fvu(sae: Sae) -> float:
        with torch.no_grad():
            return float((acts - sae(acts)).square().sum() / (acts - acts.mean(0)).square().sum())

    small, large = (fvu(of.finished()["seed0"].sae) for of in (of_stream, of_whole))
    assert small == pytest.approx(large, rel=0.1)


def test_bad_buffers_are_refused(stream):
    with pytest.raises(InputError, match=r"activations\.buffer_tokens: must be at least tokens\.n_ctx \(16\).*not 15"):
        stream(buffer_tokens=15)
    with pytest.raises(InputError, match=r"saes\.batch_tokens \(64\) must not exceed the 10 training tokens"):
        train_streams(stream(), [group(SETTINGS | {"n_tokens": 10})])
    assert streams.batch_key(SETTINGS, None) == streams.batch_key(SETTINGS | {"seed": 1, "k": 9}, None)
