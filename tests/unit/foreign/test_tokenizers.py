"""A model's own tokenizer is compared with the run's, as files and by the ids that both make of a text."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from saelineage.errors import InputError
from saelineage.foreign.tokenizers import compare_tokenizers, merges_of, read_tokenizer, require_same_tokenizer
from saelineage.tokens import require_same_tokens, train_tokenizer

TEXTS = ["the cat sat on the mat", "local function f(x) return x + 1 end", "naïve café ✓ 😀 日本語"] * 20
N_IDS, N_MERGES = 300, 41  # 3 special tokens and 256 bytes come without merges
CHECKS = (require_same_tokenizer, require_same_tokens)
IM_START = {
    "id": N_IDS,
    "content": "<|im_start|>",
    "special": True,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_tokenizer(TEXTS, N_IDS).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def model_folder(run_folder: Path, tmp_path: Path) -> Callable[[Callable[[dict], object]], Path]:
    """A model's folder whose tokenizer.json is the run's with a change."""

    def changed(change: Callable[[dict], object]) -> Path:
        tokenizer = json.loads((run_folder / "tokenizer.json").read_text())
        change(tokenizer)
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
        return tmp_path

    return changed


def permute(tokenizer: dict) -> None:
    """Exchange the ids of all tokens but the three special ones and one."""
    vocabulary = tokenizer["model"]["vocab"]
    moved = sorted((token for token, number in vocabulary.items() if number > 3), key=vocabulary.__getitem__)
    ids = [vocabulary[token] for token in moved]
    for token, number in zip(moved, [*ids[1:], ids[0]], strict=True):
        vocabulary[token] = number


@pytest.mark.parametrize("check", CHECKS)
def test_a_tokenizer_with_permuted_ids_is_refused_with_their_number(model_folder, run_folder, check):
    message = (
        r"^models\.tuned: ids must mean the same tokens to the model's own tokenizer as to the run's, but 296 of 300 "
        r"ids differ \(4 is '.+' to the model, '\"' to the run, 5 is '\"' to the model, '#' to the run, .*\.\.\.\); "
        r"set tokenizer: to the tokenizer this model was trained with, or leave the model out$"
    )
    with pytest.raises(InputError, match=message):
        check(model_folder(permute), run_folder, "tuned")


@pytest.mark.parametrize("check", CHECKS)
def test_two_exchanged_ids_are_enough(model_folder, run_folder, check):
    def exchange(tokenizer: dict) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    with pytest.raises(InputError, match="but 2 of 300 ids differ"):
        check(model_folder(exchange), run_folder, "tuned")


def test_other_merges_with_the_same_ids_are_warned_of(model_folder, run_folder):
    """Two merges that never compete may stand in any order, as those of converted tokenizers do."""

    def exchange(tokenizer: dict) -> None:
        merges = tokenizer["model"]["merges"]
        letters = [set("".join(pair)) for pair in merges]
        first = next(n for n in range(len(merges) - 1) if not letters[n] & letters[n + 1])
        merges[first : first + 2] = reversed(merges[first : first + 2])

    folder = model_folder(exchange)
    for check in CHECKS:
        assert check(folder, run_folder, "tuned") == [
            f"models.tuned: 2 of {N_MERGES} merges differ between the model's own tokenizer and the run's, so the same "
            "text may give different ids; the import compares the ids that both give for many short texts, and these "
            "decide"
        ]


def test_other_merges_with_other_ids_are_refused_by_the_ids(model_folder, run_folder):
    folder = model_folder(lambda tokenizer: tokenizer["model"]["merges"].reverse())
    assert "merges differ" in require_same_tokenizer(folder, run_folder, "tuned")[0]
    with pytest.raises(InputError, match=r"must give the same ids for a text .* \d+ of \d+ ids differ in \d+ short"):
        require_same_tokens(folder, run_folder, "tuned")


def test_other_rules_are_refused_by_the_ids(model_folder, run_folder):
    spaced = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True}
    for change in ({"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": spaced}):
        folder = model_folder(lambda tokenizer, change=change: tokenizer.update(change))
        assert require_same_tokenizer(folder, run_folder, "tuned") == []
        with pytest.raises(
            InputError, match=r"^models\.tuned: .* give the same ids for a text .* \d+ of \d+ ids differ"
        ):
            require_same_tokens(folder, run_folder, "tuned")


def added_token(content: str, number: int = N_IDS, **flags: bool) -> dict:
    return IM_START | {"id": number, "content": content, "special": False} | flags


def test_an_added_token_that_is_found_in_another_way_is_warned_of_and_refused_by_the_ids(
    model_folder, run_folder, tmp_path
):
    def write(name: str, *added: dict, vocabulary: tuple[str, ...] = ()) -> Path:
        tokenizer = json.loads((run_folder / "tokenizer.json").read_text())
        tokenizer["added_tokens"].extend(added)
        tokenizer["model"]["vocab"] |= {token: N_IDS + place for place, token in enumerate(vocabulary)}
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer))
        return tmp_path / name

    run = write("run", added_token("<call>"))
    for name, folder, phrase in (
        ("strips", write("strips", added_token("<call>", lstrip=True)), "'<call>' differs in lstrip"),
        ("words", write("words", added_token("<call>", single_word=True)), "'<call>' differs in single_word"),
        ("plain", write("plain", vocabulary=("<call>",)), "'<call>' is an added token of the run alone"),
    ):
        (warning,) = require_same_tokenizer(folder, run, name)
        assert f"than by the run's: 1 ({phrase})" in warning
        with pytest.raises(InputError, match="ids differ"):
            require_same_tokens(folder, run, name)
    assert require_same_tokens(write("same", added_token("<call>")), run, "same") == []


def test_flags_of_special_tokens_do_not_matter_because_rows_hold_them_as_text(model_folder, run_folder):
    folder = model_folder(lambda tokenizer: tokenizer["added_tokens"][1].update(lstrip=True, normalized=True))
    for check in CHECKS:
        assert check(folder, run_folder, "tuned") == []


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: None,
        lambda tokenizer: tokenizer.update(padding={"strategy": "BatchLongest"} | PADDING, truncation=TRUNCATION),
        lambda tokenizer: tokenizer.update(post_processor=None, decoder=None),
        lambda tokenizer: tokenizer.update(normalizer={"type": "Sequence", "normalizers": []}),
        lambda tokenizer: tokenizer["model"].update(merges=[" ".join(pair) for pair in tokenizer["model"]["merges"]]),
        lambda tokenizer: tokenizer["model"].update(
            vocab=dict(sorted(tokenizer["model"]["vocab"].items())), unk_token=None, byte_fallback=False
        ),
    ],
    ids=["nothing", "padding and truncation", "post-processor", "empty sequence", "merges as text", "order of keys"],
)
def test_what_changes_no_id_is_passed(model_folder, run_folder, check, change):
    assert check(model_folder(change), run_folder, "tuned") == []


PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0, "pad_token": "<pad>"}
TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize("check", CHECKS)
def test_added_tokens_of_one_side_are_allowed_and_said(model_folder, run_folder, check):
    folder = model_folder(lambda tokenizer: tokenizer["added_tokens"].append(IM_START))
    assert check(folder, run_folder, "chat") == [
        "models.chat: the run's tokenizer writes the rows, and lacks these of the model's added tokens, which are "
        "plain text there: 1 (<|im_start|>)"
    ]
    assert check(run_folder, folder, "base") == [
        "models.base: the model's own tokenizer lacks these added tokens of the run's, for which tokens.unshared "
        "counts where the text holds them: 1 (<|im_start|>)"
    ]


@pytest.mark.parametrize("check", CHECKS)
def test_renamed_added_tokens_and_other_separators_are_said(model_folder, run_folder, check, tmp_path):
    def rename(tokenizer: dict) -> None:
        tokenizer["added_tokens"][1]["content"] = "<|end|>"

    folder = model_folder(rename)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "<|end|>"}}))
    (run_folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    assert check(folder, run_folder, "chat") == [
        "models.chat: the model's own tokenizer has eos_token '<|end|>', the run's '</s>'; rows hold the run's",
        "models.chat: added tokens with other names in the model's own tokenizer, for which tokens.unshared counts "
        "where the text holds the run's: 1 (1 is '<|end|>' to the model, '</s>' to the run)",
    ]
    (run_folder / "tokenizer_config.json").unlink()


def test_a_damaged_tokenizer_names_its_file(model_folder, run_folder):
    for change in ({"model": 3}, {"model": {"vocab": None}}):
        folder = model_folder(lambda tokenizer, change=change: tokenizer.update(change))
        with pytest.raises(InputError, match=rf"^'{folder}/tokenizer\.json' must hold a vocabulary"):
            require_same_tokenizer(folder, run_folder, "tuned")


def test_vocabulary_and_merges_without_a_tokenizer_json_are_compared(run_folder, tmp_path):
    tokenizer = json.loads((run_folder / "tokenizer.json").read_text())
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    assert require_same_tokenizer(tmp_path, run_folder, "old") == []
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    # GPT-2's rules are those of the trained tokenizer; transformers adds a token to every GPT-2 tokenizer
    (warning,) = require_same_tokens(tmp_path, run_folder, "old")
    assert warning.endswith("of the model's added tokens, which are plain text there: 1 (<|endoftext|>)")
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, merges[:-1])))
    (warning,) = require_same_tokenizer(tmp_path, run_folder, "old")
    assert f"1 of {N_MERGES} merges differ" in warning
    permute(tokenizer)
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    with pytest.raises(InputError, match="296 of 300 ids differ"):
        require_same_tokenizer(tmp_path, run_folder, "old")


def test_the_line_end_of_a_word_list_is_no_token(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\ncat\n\nmat\n")
    assert read_tokenizer(tmp_path)["model"]["vocab"] == {"[PAD]": 0, "cat": 1, "": 2, "mat": 3}
    (tmp_path / "vocab.txt").write_text("[PAD]\ncat")
    assert read_tokenizer(tmp_path)["model"]["vocab"] == {"[PAD]": 0, "cat": 1}


def test_a_model_whose_tokenizer_cannot_be_opened_is_warned_of_with_the_reason(run_folder, tmp_path, monkeypatch):
    check = require_same_tokens
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert require_same_tokenizer(tmp_path, run_folder, "mine") == []
    (warning,) = check(tmp_path, run_folder, "mine")
    assert warning == (
        f"models.mine: '{tmp_path}' holds no tokenizer, so it cannot be compared with the run's tokenizer; make sure "
        "that the model was trained with that one"
    )
    (tmp_path / "tokenizer.model").write_bytes(b"no tokenizer")
    (warning,) = check(tmp_path, run_folder, "mine")
    assert warning.startswith(f"models.mine: the tokenizer in '{tmp_path}' cannot be opened (")
    assert warning.endswith(
        "), so nothing of it was compared with the run's; make sure that the model was trained with that one"
    )
    import transformers

    def broken(*_, **__):
        raise ImportError("needs\nblobfile")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", broken)
    vocabulary = json.loads((run_folder / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (warning,) = check(tmp_path, run_folder, "mine")
    assert "cannot be opened (needs blobfile), so only its vocabulary was compared with the run's" in warning


def test_unigram_vocabularies_are_compared_by_place_and_by_score():
    tokens = [["<unk>", 0.0], ["a", -1.0], ["b", -2.0]]
    run = {"model": {"type": "Unigram", "vocab": tokens, "unk_id": 0}}
    moved, other = copy.deepcopy(run), copy.deepcopy(run)
    moved["model"]["vocab"] = [tokens[0], tokens[2], tokens[1]]
    other["model"]["vocab"] = [*tokens[:2], ["b", -2.5]]
    assert len(compare_tokenizers(moved, run).different) == 2
    comparison = compare_tokenizers(other, run)
    assert (comparison.different, comparison.rules, comparison.n_different_rules) == ((), "scores", 1)
    other["model"]["vocab"] = [*tokens[:2], ["b", -2.0000000298]]  # as float32 rounds it
    assert compare_tokenizers(other, run) == (3, (), "scores", 3, 0, (), (), (), ())


def test_merges_are_read_in_either_spelling():
    pairs = [["a", "b"], ["ab", "c"]]
    assert merges_of({"model": {"merges": pairs}}) == merges_of({"model": {"merges": ["a b", "ab c"]}})


def test_the_real_ids_of_any_text_agree_when_nothing_is_said(run_folder, tmp_path):
    """A tokenizer whose file is written anew by the library itself is the same tokenizer."""
    tokenizer = Tokenizer.from_file(str(run_folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"), pretty=False)
    assert require_same_tokens(tmp_path, run_folder, "again") == []
    letters = random.Random(0).choices("abc 12\n", k=200)
    whole = Tokenizer.from_file(str(run_folder / "tokenizer.json"))
    assert tokenizer.encode("".join(letters)).ids == whole.encode("".join(letters)).ids


def test_word_level_tokenizers_are_compared_by_their_words(tmp_path):
    folders = []
    for name, words in {"run": "a b c", "model": "a c b"}.items():
        folder = tmp_path / name
        folder.mkdir()
        vocabulary = {word: number for number, word in enumerate(["?", *words.split()])}
        Tokenizer(models.WordLevel(vocabulary, unk_token="?")).save(str(folder / "tokenizer.json"))  # noqa: S106
        folders.append(folder)
    with pytest.raises(InputError, match="2 of 4 ids differ"):
        require_same_tokens(folders[1], folders[0], "words")
