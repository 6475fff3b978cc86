"""Compare a model's own tokenizer with the run's, which replaces it: the same id must mean the same token.

A run has one tokenizer, so that features of different models fire on the same tokens. An imported model that was
trained with another one runs without an error on the run's ids, and everything measured on it is meaningless.

From the files alone, the vocabulary decides. Merges, normalizer, pre-tokenizer and options may be written in several
ways that give the same ids (transformers 5 writes them anew for some classes, and converters list other merges), so
`tokens.require_same_tokens` compares the ids that both tokenizers give for many texts. Post-processor, decoder, padding
and truncation play no part: rows are made without them.
"""

import filecmp
from collections.abc import Callable, Iterator, Mapping
from math import isclose
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
TOKENIZER_SMALL_FILES = (FAST_FILE, CONFIG_FILE, VOCABULARY_FILE, MERGES_FILE, WORDS_FILE, ADDED_FILE)
"""Small files of a model's folder or repository that this module reads."""
MOST_TOKENIZER_BYTES = 256 << 20
N_EXAMPLES = 3
FLAGS = ("normalized", "lstrip", "rstrip", "single_word", "special")
"""Keys of an added token that decide where it is found in a text."""
SCORE_TOLERANCE = 1e-6
"""Relative difference of log probabilities that differ only by the rounding of float32."""
REMEDY = "save it again with save_pretrained"
NEXT_STEP = "set tokenizer: to the tokenizer this model was trained with, or leave the model out"
REFUSE, LEAVE_OUT = "refuse", "leave_out"
"""What happens where the text holds tokens that a model does not share with the run's tokenizer (`tokens.unshared`)."""
WAY_ROUND = (
    "set tokens.unshared: leave_out, and the model reads its own EOS in their place and is not compared there; or set "
    "tokenizer: to one that has no other tokens than the model"
)


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
    rules: str
    """`merges`, or `scores` of a Unigram tokenizer: the rules by which text is cut into tokens."""
    n_rules: int
    """Rules of the longer list."""
    n_different_rules: int
    """Rules that one of them lacks; if both have the same ones, those at another place."""
    only_model: tuple[str, ...]
    """Added tokens at ids that the run's tokenizer does not have."""
    only_run: tuple[str, ...]
    """Added tokens at ids that the model's tokenizer does not have."""
    renamed: tuple[str, ...]
    """A phrase for each id that is an added token of both, under different names."""
    other_flags: tuple[str, ...]
    """A phrase for each token that is an added one of one side alone, or of both with other `FLAGS`."""


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
        words = words[:-1] if words[-1] == "" else words  # after the last line's end
        model = {"vocab": {word: number for number, word in enumerate(words)}}
    else:
        return None
    added = Path(folder, ADDED_FILE)
    contents = read_foreign_json(added, REMEDY) if added.exists() else {}
    return {"model": model, "added_tokens": [{"content": token, "id": number} for token, number in contents.items()]}


def read_whole_tokenizer(folder: Path) -> dict | None:
    """Read a tokenizer.json; None if there is none, because other files do not list all added tokens.

    Raises:
        InputError: if it is damaged.
    """
    return read_tokenizer(folder) if Path(folder, FAST_FILE).exists() else None


def require_same_tokenizer(
    model_folder: Path | str,
    run_tokenizer_folder: Path | str,
    name: str,
    read_run: Callable[[Path], dict | None] = read_tokenizer,
) -> list[str]:
    """Compare the tokenizer in a model's folder with the run's, from their files alone.

    Args:
        model_folder: the folder, or the downloaded small files, of the model.
        run_tokenizer_folder: the folder of the run's tokenizer, or of the tokenizer that the config names.
        name: the model's name in the config, for messages.
        read_run: `read_tokenizer`, or a function that remembers the run's for the next model.

    Returns:
        Sentences to warn with: what may give different ids, and what the run's tokenizer replaces. Nothing where a
        tokenizer has no files that can be read here; `tokens.require_same_tokens` says that.

    Raises:
        InputError: if ids differ, with their number and examples; or a file of the model's tokenizer is damaged, or a
            link out of its folder.
    """
    model_folder, run_folder = Path(model_folder), Path(run_tokenizer_folder)
    require_inside(model_folder, ENDINGS)
    warnings = _special_warnings(model_folder, run_folder, name)
    if same_files(model_folder, run_folder):
        return warnings
    model, run = read_tokenizer(model_folder), read_run(run_folder)
    if model is None or run is None:
        return warnings
    comparison = compare_tokenizers(model, run)
    require_same_ids(comparison, name)
    return warnings + comparison_warnings(comparison, name)


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
    return Comparison(
        len(ids),
        tuple(different),
        *_compare_rules(model, run),
        tuple(only_model),
        tuple(only_run),
        tuple(renamed),
        tuple(_other_flags(model, run)),
    )


def require_same_ids(comparison: Comparison, name: str) -> None:
    """Refuse a model's tokenizer whose ids differ from the run's.

    Raises:
        InputError: with the number of ids that differ.
    """
    if comparison.different:
        raise InputError(
            f"models.{name}: ids must mean the same tokens to the model's own tokenizer as to the run's, but "
            f"{len(comparison.different)} of {comparison.n_ids} ids differ ({_shown(comparison.different)}); "
            f"{NEXT_STEP}"
        )


def comparison_warnings(comparison: Comparison, name: str) -> list[str]:
    """Say in sentences what of a model's tokenizer the run's does not have, and what may give different ids."""
    warnings = []
    if comparison.only_model:
        warnings.append(
            f"models.{name}: the run's tokenizer writes the rows, and lacks these of the model's added tokens, which "
            f"are plain text there: {len(comparison.only_model)} ({_shown(comparison.only_model)})"
        )
    if comparison.only_run:
        warnings.append(
            f"models.{name}: the model's own tokenizer lacks these added tokens of the run's, for which "
            "tokens.unshared counts where the text holds them: "
            f"{len(comparison.only_run)} ({_shown(comparison.only_run)})"
        )
    if comparison.renamed:
        warnings.append(
            f"models.{name}: added tokens with other names in the model's own tokenizer, for which tokens.unshared "
            f"counts where the text holds the run's: {len(comparison.renamed)} ({_shown(comparison.renamed)})"
        )
    if comparison.n_different_rules:
        warnings.append(
            f"models.{name}: {comparison.n_different_rules} of {comparison.n_rules} {comparison.rules} differ between "
            "the model's own tokenizer and the run's, so the same text may give different ids; the import compares the "
            "ids that both give for many short texts, and these decide"
        )
    if comparison.other_flags:
        warnings.append(
            f"models.{name}: these tokens are found in a text in another way by the model's own tokenizer than by the "
            f"run's: {len(comparison.other_flags)} ({_shown(comparison.other_flags)}); the import compares the ids "
            "that both give for many short texts"
        )
    return warnings


def unshared_tokens(run: Mapping, model: Mapping | None, n_rows: int | None) -> dict[int, str]:
    """The tokens of the run's tokenizer that a model does not share: without a row, or not the same in its own.

    Args:
        run, model: tokenizers as the mappings of their tokenizer.json; None if the model has none.
        n_rows: rows of the model's embedding; None if they are not known.
    """
    tokens = vocabulary_of(run).tokens
    own = tokens if model is None else vocabulary_of(model).tokens
    return {
        number: token
        for number, token in tokens.items()
        if (n_rows is not None and number >= n_rows) or own.get(number) != token
    }


def require_readable(
    run: Mapping, model: Mapping | None, n_rows: int | None, template: str | None, unshared: str, name: str
) -> list[str]:
    """Check before the text is read that a model can read what the run's tokenizer makes of it.

    Args:
        run, model, n_rows: as for `unshared_tokens`.
        template: the chat template that writes rows, or what it writes; None in runs without conversations.
        unshared: `REFUSE` or `LEAVE_OUT`.
        name: the model's name in the config, for messages.

    Returns:
        Sentences to warn with.

    Raises:
        InputError: if the model has no rows for ids that are not added tokens; or the template writes tokens that it
            does not share, and these are not to be left out.
    """
    tokens = unshared_tokens(run, model, n_rows)
    added = vocabulary_of(run).added
    without = [f"{token!r:.40}" for number, token in tokens.items() if n_rows is not None and number >= n_rows]
    if n_rows is not None and any(number >= n_rows and number not in added for number in tokens):
        raise InputError(
            f"models.{name}: the model must have an embedding row for every token of the run's tokenizer that is not "
            f"an added one, but has {n_rows} rows, too few for {len(without)} tokens ({_shown(tuple(without))}); "
            f"{NEXT_STEP}"
        )
    written = tuple(token for number, token in sorted(tokens.items()) if number in added and token in (template or ""))
    if written and unshared != LEAVE_OUT:
        raise InputError(
            f"models.{name}: the chat template writes tokens that the model does not share, because it has no "
            f"embedding row for them, or its own tokenizer has not these tokens under their ids: {len(written)} "
            f"({_shown(written)}); {WAY_ROUND}"
        )
    if not without:
        return []
    return [
        f"models.{name}: the model's embedding has {n_rows} rows, none for these added tokens of the run's tokenizer: "
        f"{len(without)} ({_shown(tuple(without))})"
    ]


def cannot_be_compared(folder: Path, name: str, reason: str | None = None) -> str:
    """Say that a model's folder does not show which tokenizer the model was trained with.

    Args:
        folder: the model's folder.
        name: the model's name in the config.
        reason: the reason why the tokenizer could not be opened; None if there is none in the folder.
    """
    if reason is None:
        start = f"'{folder}' holds no tokenizer, so it cannot be compared with the run's tokenizer"
    else:
        compared = "only its vocabulary was" if read_tokenizer(folder) is not None else "nothing of it was"
        start = f"the tokenizer in '{folder}' cannot be opened ({reason}), so {compared} compared with the run's"
    return f"models.{name}: {start}; make sure that the model was trained with that one"


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
    """The merges of a tokenizer, in order; none for a Unigram one.

    A tokenizer.json holds a merge as "a b", or since tokenizers 0.20 as the pair [a, b].
    """
    merges = _model_of(tokenizer).get("merges")
    merges = merges if isinstance(merges, list) else []
    return [_texts(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]


def _texts(values: object) -> tuple[str, ...]:
    return tuple(map(str, values)) if isinstance(values, list) else (str(values),)


def shared_added_tokens(model: Mapping, run: Mapping) -> Iterator[str]:
    """Yield the tokens that are added ones of either side, are the same id to both, and are found in texts.

    Special tokens are not: the rows of a run hold them as plain text.
    """
    model_added, run_added = _added_of(model), _added_of(run)
    model_words, run_words = vocabulary_of(model).tokens, vocabulary_of(run).tokens
    for number in sorted(model_added.keys() | run_added.keys()):
        entries = [added[number] for added in (model_added, run_added) if number in added]
        if model_words.get(number) == run_words.get(number) and not any(entry.get("special") for entry in entries):
            yield run_words[number]


def _added_of(tokenizer: Mapping) -> dict[int, dict]:
    """The entries of added tokens by id."""
    entries = tokenizer.get("added_tokens")
    entries = entries if isinstance(entries, list) else []
    return {entry["id"]: entry for entry in entries if isinstance(entry, dict) and type(entry.get("id")) is int}


def _other_flags(model: Mapping, run: Mapping) -> Iterator[str]:
    """Phrases of the tokens that both have at one id, and that are not found in a text in the same way."""
    if not all("normalizer" in tokenizer for tokenizer in (model, run)):
        return  # not the whole of a tokenizer.json: without its flags
    model_added, run_added = _added_of(model), _added_of(run)
    model_words, run_words = vocabulary_of(model).tokens, vocabulary_of(run).tokens
    for number in sorted(model_added.keys() | run_added.keys()):
        token = run_words.get(number)
        if token is None or model_words.get(number) != token:
            continue
        ours, theirs = run_added.get(number), model_added.get(number)
        if all(entry.get("special") for entry in (ours, theirs) if entry is not None):
            continue  # rows hold special tokens as plain text
        if ours is None or theirs is None:
            yield f"{token!r:.40} is an added token of the {'model' if ours is None else 'run'} alone"
        else:
            differing = [flag for flag in FLAGS if bool(theirs.get(flag)) != bool(ours.get(flag))]
            if differing:
                yield f"{token!r:.40} differs in {', '.join(differing)}"


def _compare_rules(model: Mapping, run: Mapping) -> tuple[str, int, int]:
    """The name of the rules that cut text, their number, and the number of those that differ.

    No rules on one side alone say nothing.
    """
    ours, theirs = (_model_of(tokenizer).get("vocab") for tokenizer in (run, model))
    if isinstance(ours, list) and isinstance(theirs, list):
        differing = sum(not _is_same_score(*pair) for pair in zip(theirs, ours, strict=False))
        return "scores", max(len(ours), len(theirs)), differing
    left, right = merges_of(model), merges_of(run)
    n_rules = max(len(left), len(right))
    if left == right or not left or not right:
        return "merges", n_rules, 0
    moved = sum(first != second for first, second in zip(left, right, strict=False))
    return "merges", n_rules, len(set(left) ^ set(right)) or moved


def _is_same_score(a: object, b: object) -> bool:
    """True if two entries of Unigram vocabularies have the same log probability, as far as float32 holds it."""
    first, second = (entry[1] if isinstance(entry, list) and len(entry) > 1 else None for entry in (a, b))
    if isinstance(first, float) and isinstance(second, float):
        return isclose(first, second, rel_tol=SCORE_TOLERANCE, abs_tol=SCORE_TOLERANCE)
    return bool(first == second)


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
