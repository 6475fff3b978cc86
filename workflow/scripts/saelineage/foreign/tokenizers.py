"""Compare a model's own tokenizer with the run's, which replaces it: the same id must mean the same token.

A run has one tokenizer, so that features of different models fire on the same tokens. An imported model that was
trained with another one runs without an error on the run's ids, and everything measured on it is meaningless.

Vocabulary and merges decide. Normalizer, pre-tokenizer and options of the model may be written in several ways that
give the same ids (transformers 5 writes them anew for some classes), so a difference there is reported as undecided;
`tokens.require_same_tokens` then compares the ids that both tokenizers make of a text. Post-processor, decoder, padding
and truncation play no part: rows are made without them.
"""

import filecmp
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json, require_inside, require_regular

FAST_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
VOCABULARY_FILE, MERGES_FILE, WORDS_FILE, ADDED_FILE = "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"
SENTENCEPIECE_FILES = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
ENDINGS = (".json", ".txt", ".model")
VOCABULARY_FILES = (FAST_FILE, VOCABULARY_FILE, WORDS_FILE, *SENTENCEPIECE_FILES)
"""Files of which a tokenizer has at least one."""
MODEL_FILES = (FAST_FILE, CONFIG_FILE, VOCABULARY_FILE, MERGES_FILE, WORDS_FILE, ADDED_FILE)
"""Small files of a model's folder or repository that this module reads."""
MOST_TOKENIZER_BYTES = 256 << 20
N_EXAMPLES = 3
PIPELINE = ("normalizer", "pre_tokenizer")
OPTIONS = (
    *("type", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback"),
    *("ignore_merges", "max_input_chars_per_word", "unk_id"),
)
"""Keys of `model` in a tokenizer.json that may change ids; dropout, which is for training, is not among them."""
REMEDY = "save it again with save_pretrained"
NEXT_STEP = "set tokenizer: to the tokenizer this model was trained with, or leave the model out"


class Vocabulary(NamedTuple):
    """The tokens of a tokenizer."""

    tokens: dict[int, str]
    """Token by id, added tokens included."""
    added: frozenset[int]
    """Ids of added tokens, which are found in a text before it is split, or are never found in one."""


class Comparison(NamedTuple):
    """Differences between a model's tokenizer and the run's."""

    n_ids: int
    """Ids that either knows."""
    different: tuple[str, ...]
    """A phrase for each id that means different tokens, or a token to one of them only."""
    n_merges: int
    """Merges of the longer list."""
    n_different_merges: int
    """Merges that one of them lacks; if both have the same ones, those at another place."""
    only_model: tuple[str, ...]
    """Added tokens at ids that the run's tokenizer does not have."""
    only_run: tuple[str, ...]
    """Added tokens at ids that the model's tokenizer does not have."""
    renamed: tuple[str, ...]
    """A phrase for each id that is an added token of both, under different names."""
    undecided: tuple[str, ...]
    """Parts that are written differently and may or may not give different ids."""


def require_same_tokenizer(
    model_folder: Path | str, run_tokenizer_folder: Path | str, name: str, *, undecided: bool = True
) -> list[str]:
    """Compare the tokenizer in a model's folder with the run's, from their files alone.

    Args:
        model_folder: the folder, or the downloaded small files, of the model.
        run_tokenizer_folder: the folder of the run's tokenizer, or of the tokenizer that the config names.
        name: the model's name in the config, for messages.
        undecided: False leaves out the warnings of what only the tokenizers themselves can tell, because the caller
            lets them.

    Returns:
        Sentences to warn with: what cannot be compared, and what the run's tokenizer replaces.

    Raises:
        InputError: if ids or merges differ, with their number and examples; or a file of the model's tokenizer is
            damaged, or a link out of its folder.
    """
    model_folder, run_folder = Path(model_folder), Path(run_tokenizer_folder)
    require_inside(model_folder, ENDINGS)
    warnings = _special_warnings(model_folder, run_folder, name)
    if same_files(model_folder, run_folder):
        return warnings
    model, run = read_tokenizer(model_folder), read_tokenizer(run_folder)
    if model is None or run is None:
        cannot = [cannot_be_compared(model_folder, name)] if model is None and undecided else []
        return warnings + cannot  # make_tokenizer converts a run's tokenizer that has no such file, and then it has one
    comparison = compare_tokenizers(model, run)
    require_same_ids(comparison, name)
    return warnings + comparison_warnings(comparison, name, undecided=undecided)


def read_tokenizer(folder: Path) -> dict | None:
    """Read a tokenizer as the mapping that its tokenizer.json holds; None if the folder has no file that says it.

    A vocab.json with its merges.txt, or a vocab.txt, says vocabulary and merges, and nothing of the rest.

    Raises:
        InputError: if a file is damaged.
    """
    if Path(folder, FAST_FILE).exists():
        return _read_fast(Path(folder, FAST_FILE))
    if Path(folder, VOCABULARY_FILE).exists():
        vocabulary = read_foreign_json(Path(folder, VOCABULARY_FILE), REMEDY, MOST_TOKENIZER_BYTES)
        merges = Path(folder, MERGES_FILE)
        model = {"vocab": vocabulary} | ({"merges": _merge_lines(merges)} if merges.exists() else {})
    elif Path(folder, WORDS_FILE).exists():
        words = _lines(Path(folder, WORDS_FILE))
        model = {"vocab": {word: number for number, word in enumerate(words)}}
    else:
        return None
    added = Path(folder, ADDED_FILE)
    contents = read_foreign_json(added, REMEDY) if added.exists() else {}
    return {"model": model, "added_tokens": [{"content": token, "id": number} for token, number in contents.items()]}


def compare_tokenizers(model: Mapping, run: Mapping) -> Comparison:
    """Compare two tokenizers, given as the mappings that their tokenizer.json hold.

    Raises:
        InputError: if one has no vocabulary.
    """
    model_words, run_words = vocabulary_of(model), vocabulary_of(run)
    different: list[str] = []
    only_model, only_run, renamed = [], [], []
    ids = sorted(model_words.tokens.keys() | run_words.tokens.keys())
    for number in ids:
        model_token, run_token = model_words.tokens.get(number), run_words.tokens.get(number)
        if model_token == run_token:
            continue
        if run_token is None and model_token is not None and number in model_words.added:
            only_model.append(model_token)
        elif model_token is None and run_token is not None and number in run_words.added:
            only_run.append(run_token)
        elif number in model_words.added and number in run_words.added:
            renamed.append(_phrase(number, model_token, run_token))
        else:
            different.append(_phrase(number, model_token, run_token))
    n_merges, n_different_merges = _compare_merges(merges_of(model), merges_of(run))
    return Comparison(
        len(ids),
        tuple(different),
        n_merges,
        n_different_merges,
        tuple(only_model),
        tuple(only_run),
        tuple(renamed),
        tuple(_undecided(model, run)),
    )


def require_same_ids(comparison: Comparison, name: str) -> None:
    """Refuse a model's tokenizer whose ids or merges differ from the run's.

    Raises:
        InputError: with the number of ids, or of merges, that differ.
    """
    if comparison.different:
        raise InputError(
            f"models.{name}: ids must mean the same tokens to the model's own tokenizer as to the run's, but "
            f"{len(comparison.different)} of {comparison.n_ids} ids differ ({_shown(comparison.different)}); "
            f"{NEXT_STEP}"
        )
    if comparison.n_different_merges:
        raise InputError(
            f"models.{name}: the model's own tokenizer must merge as the run's does, but of {comparison.n_merges} "
            f"merges {comparison.n_different_merges} differ, so the same text becomes other ids; {NEXT_STEP}"
        )


def comparison_warnings(comparison: Comparison, name: str, *, undecided: bool = True) -> list[str]:
    """Say in sentences what of a model's tokenizer the run's does not have, and what could not be decided."""
    warnings = []
    if comparison.only_model:
        warnings.append(
            f"models.{name}: the run's tokenizer replaces the model's own, and lacks these of its added tokens, which "
            f"become plain text: {len(comparison.only_model)} ({_shown(comparison.only_model)})"
        )
    if comparison.only_run:
        warnings.append(
            f"models.{name}: the model's own tokenizer lacks these added tokens of the run's, on whose ids the model "
            f"may not have been trained: {len(comparison.only_run)} ({_shown(comparison.only_run)})"
        )
    if comparison.renamed:
        warnings.append(
            f"models.{name}: added tokens with other names in the model's own tokenizer, of which the run's are used: "
            f"{len(comparison.renamed)} ({_shown(comparison.renamed)})"
        )
    if undecided and comparison.undecided:
        warnings.append(
            f"models.{name}: of the model's own tokenizer, {', '.join(comparison.undecided)} cannot be told from the "
            "run's by reading; the import compares the ids that both make of a text"
        )
    return warnings


def cannot_be_compared(folder: Path, name: str) -> str:
    """Say that a model's folder does not show which tokenizer the model was trained with."""
    model_file = next((file for file in SENTENCEPIECE_FILES if Path(folder, file).exists()), None)
    holds = f"only a {model_file}, which is not read here" if model_file else "no tokenizer"
    return (
        f"models.{name}: '{folder}' holds {holds}, so it cannot be compared with the run's tokenizer; make sure that "
        "the model was trained with that one"
    )


def same_files(model_folder: Path | str, run_folder: Path | str) -> bool:
    """True if both folders hold the same tokenizer.json, byte by byte."""
    paths = Path(model_folder, FAST_FILE), Path(run_folder, FAST_FILE)
    return all(path.exists() for path in paths) and filecmp.cmp(*paths, shallow=False)


def vocabulary_of(tokenizer: Mapping, where: str = "a tokenizer.json") -> Vocabulary:
    """The tokens of a tokenizer, given as the mapping of its tokenizer.json.

    Args:
        tokenizer: the mapping.
        where: the file, for messages.

    Raises:
        InputError: if it has no vocabulary.
    """
    model = tokenizer.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict):
        tokens = {number: token for token, number in words.items() if type(number) is int}
    elif isinstance(words, list):  # Unigram: pairs of token and log probability, the place is the id
        tokens = {number: str(pair[0]) for number, pair in enumerate(words) if isinstance(pair, list) and pair}
    else:
        raise InputError(f"{where} must hold a vocabulary (model.vocab), but it is {words!r:.80}; {REMEDY}")
    entries = tokenizer.get("added_tokens") or []
    entries = entries if isinstance(entries, list) else []
    added = {
        entry["id"]: entry["content"]
        for entry in entries
        if isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("content"), str)
    }
    return Vocabulary(tokens | added, frozenset(added))


def merges_of(tokenizer: Mapping) -> list[tuple[str, ...]]:
    """The merges of a tokenizer, in order, or the log probabilities of a Unigram one; they decide how text is cut.

    A tokenizer.json holds a merge as "a b", or since tokenizers 0.20 as the pair [a, b].
    """
    model = _model_of(tokenizer)
    merges, words = model.get("merges"), model.get("vocab")
    if isinstance(merges, list):
        return [_texts(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    return [_texts(pair) for pair in words] if isinstance(words, list) else []


def _texts(values: object) -> tuple[str, ...]:
    return tuple(map(str, values)) if isinstance(values, list) else (str(values),)


def plain_pipeline(part: object) -> list[dict]:
    """Steps of a normalizer or pre-tokenizer in one spelling: no nesting, no defaults, nothing that decides no id."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        steps = part.get("normalizers") or part.get("pretokenizers") or []
        return [plain for step in steps for plain in plain_pipeline(step)]
    return [_plain_step(part)]


def _plain_step(step: Mapping) -> dict:
    plain = {key: value for key, value in step.items() if key not in ("trim_offsets", "str_rep")}
    if plain.get("type") == "ByteLevel":
        plain = {"add_prefix_space": True, "use_regex": True} | plain
    if plain.get("type") == "Metaspace":
        prefix = plain.pop("add_prefix_space", True)
        plain = {"prepend_scheme": "always" if prefix else "never", "split": True} | plain
    return plain


def _undecided(model: Mapping, run: Mapping) -> Iterable[str]:
    """Names of the parts of two tokenizers that are written differently."""
    for part in PIPELINE:
        if part in model and plain_pipeline(model[part]) != plain_pipeline(run.get(part)):
            yield part
    model_options, run_options = _model_of(model), _model_of(run)
    for option in OPTIONS:
        if option in model_options and (model_options[option] or None) != (run_options.get(option) or None):
            yield f"model.{option}"
    if not any(part in model for part in PIPELINE):
        yield from PIPELINE


def _compare_merges(model: list, run: list) -> tuple[int, int]:
    """The number of merges, and of those that differ; no merges on one side alone say nothing."""
    if model == run or not model or not run:
        return max(len(model), len(run)), 0
    lacking = len(set(model) ^ set(run))
    moved = sum(left != right for left, right in zip(model, run, strict=False))
    return max(len(model), len(run)), lacking or moved


def _special_warnings(model_folder: Path, run_folder: Path, name: str) -> list[str]:
    """Warn of a BOS or EOS token that is not the run's, because it begins every row or ends every document."""
    paths = (model_folder / CONFIG_FILE, run_folder / CONFIG_FILE)
    if not all(path.exists() for path in paths):
        return []
    model, run = (read_foreign_json(path, REMEDY) for path in paths)
    warnings = []
    for key in ("bos_token", "eos_token"):
        model_token, run_token = _content(model.get(key)), _content(run.get(key))
        if model_token is not None and model_token != run_token:
            warnings.append(
                f"models.{name}: the model's own tokenizer has {key} {model_token!r}, the run's {run_token!r}; "
                "rows hold the run's"
            )
    return warnings


def _content(token: object) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _read_fast(path: Path) -> dict:
    tokenizer = read_foreign_json(path, REMEDY, MOST_TOKENIZER_BYTES)
    vocabulary_of(tokenizer, f"'{path}'")
    return tokenizer


def _lines(path: Path) -> list[str]:
    require_regular(path, MOST_TOKENIZER_BYTES, REMEDY)
    try:
        return path.read_text(encoding="utf-8").split("\n")  # not splitlines, because a token may be another separator
    except ValueError as error:
        raise InputError(f"'{path}' must be UTF-8 text, but {error}; {REMEDY}") from error


def _merge_lines(path: Path) -> list[str]:
    return [line for line in _lines(path) if line.strip() and not line.startswith("#version")]


def _model_of(tokenizer: Mapping) -> Mapping:
    model = tokenizer.get("model")
    return model if isinstance(model, dict) else {}


def _phrase(number: int, model_token: str | None, run_token: str | None) -> str:
    def quoted(token: str | None) -> str:
        return "nothing" if token is None else f"{token!r:.40}"

    return f"{number} is {quoted(model_token)} to the model, {quoted(run_token)} to the run"


def _shown(phrases: tuple[str, ...]) -> str:
    more = ", ..." if len(phrases) > N_EXAMPLES else ""
    return ", ".join(f"{phrase:.120}" for phrase in phrases[:N_EXAMPLES]) + more
