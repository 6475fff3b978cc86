"""Models whose vocabularies are not quite the run's: added tokens, and embeddings with more or fewer rows.

The run's tokenizer makes the rows of ids, and a model's folder keeps the model's own tokenizer where the two differ. An
id is *shared* by a model if it is the same token to both tokenizers and the model has an embedding row for it. All ids
that are not added tokens are shared, or the model is refused when it is imported.

Where the text holds an id that a model does not share, the model cannot be given it: there is no row, or one that was
never trained. Either the run ends there (`REFUSE`), or the model reads its own EOS in its place (`LEAVE_OUT`), and that
place is left out of its SAEs, losses, features and comparisons. Logits of other ids than the shared ones are left out
of every softmax, so that models with more rows are measured like those with fewer.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from saelineage.errors import InputError
from saelineage.files.atomic import sha256_file
from saelineage.foreign.models import named
from saelineage.foreign.tokenizers import FAST_FILE, LEAVE_OUT, REFUSE, WAY_ROUND
from saelineage.tokens import TokenRows, load_tokenizer, special_ids

logger = logging.getLogger(__name__)

COUNT_ROWS = 8_192


class SharedRows(NamedTuple):
    """Token rows as one model reads them."""

    rows: dict[str, TokenRows]
    facts: dict
    """`n_rows`, of the model's embedding; `n_ids`, of the run's tokenizer; `unshared`, the ids of tokens in the rows
    that the model does not share, by token; `read_instead`, the token that it reads in their place; `left_out`, the
    number of these places by corpus."""


def n_embedding_rows(model: PreTrainedModel) -> int:
    """The number of ids that a model can read."""
    return len(model.get_input_embeddings().get_parameter("weight"))


def share_rows(
    model: PreTrainedModel, folder: Path, rows: Mapping[str, TokenRows], name: str, unshared: str = REFUSE
) -> SharedRows:
    """Make token rows readable for a model, and leave logits of ids that are not shared out of all its softmaxes.

    Args:
        model: the model; from now on its logits of ids that are not shared are minus infinity.
        folder: its folder in the run, with its own tokenizer.
        rows: token rows by corpus, all made with the run's tokenizer.
        name: the model's name in the config, for messages.
        unshared: `REFUSE` or `LEAVE_OUT`.

    Raises:
        InputError: if the rows hold ids that the model does not share, and are not to be left out; or ids without a
            row that are not added tokens.
    """
    n_rows = n_embedding_rows(model)
    own = _own_tokenizer(folder, rows)
    n_ids = max((of.info.get("n_ids", n_rows) for of in rows.values()), default=n_rows)
    tokens = {corpus: _unshared(of, own, n_rows) for corpus, of in rows.items()}
    _require_rows(rows, tokens, n_rows, name)
    ids = {token: number for of in tokens.values() for token, number in of.items()}
    facts = {"n_rows": n_rows, "n_ids": n_ids, "unshared": ids, "read_instead": None, "left_out": {}}
    hidden = sorted({*range(n_ids, n_rows), *(number for number in ids.values() if number < n_rows)})
    _leave_out_logits(model, torch.tensor(hidden, dtype=torch.int64))
    if not ids:
        return SharedRows(dict(rows), facts)
    if unshared != LEAVE_OUT:
        raise InputError(f"models.{name}: {_held(rows, tokens)}; {WAY_ROUND}")
    bos, eos = _ends(folder, n_rows, name)
    read = {
        corpus: of.read_with({n: bos if n == of.info["bos_id"] else eos for n in tokens[corpus].values()})
        for corpus, of in rows.items()
    }
    facts["read_instead"] = load_tokenizer(folder).id_to_token(eos)
    facts["left_out"] = {corpus: _n_left_out(of) for corpus, of in read.items()}
    logger.warning("models.%s: %s; left out: %s", name, _held(rows, tokens), facts["left_out"])
    return SharedRows(read, facts)


def shared_ids(folders: tuple[Path, Path]) -> list[int]:
    """The ids that are the same token to the tokenizers in two model folders."""
    first, second = (load_tokenizer(folder).get_vocab() for folder in folders)
    return sorted(number for token, number in first.items() if second.get(token) == number)


def common_ids(facts: Sequence[Mapping], folders: tuple[Path, Path], ends: Iterable[int] = ()) -> list[int]:
    """The ids that two models share with the run's tokenizer and with each other, in ascending order.

    Args:
        facts: of each model, as `SharedRows` has them, of the same token rows.
        folders: the models' folders, with their own tokenizers.
        ends: ids of BOS and EOS of rows of text, which may have other names in a model's own tokenizer.
    """
    n_ids = min(min(of["n_rows"], of["n_ids"]) for of in facts)
    unshared = {number for of in facts for number in of["unshared"].values()}
    return sorted(number for number in {*shared_ids(folders), *ends} - unshared if number < n_ids)


def end_ids(rows: Mapping[str, TokenRows]) -> set[int]:
    """The ids of BOS and EOS of rows of text, for `common_ids`."""
    return {of.info[name] for of in rows.values() if of.classes is None for name in ("bos_id", "eos_id")}


def _own_tokenizer(folder: Path, rows: Mapping[str, TokenRows]) -> Tokenizer | None:
    """A model's own tokenizer; None if it is the one that made the rows."""
    made_by = {of.info["tokenizer_sha256"] for of in rows.values()}
    path = Path(folder, FAST_FILE)
    return load_tokenizer(folder) if path.exists() and made_by != {sha256_file(path)} else None


def _unshared(rows: TokenRows, own: Tokenizer | None, n_rows: int) -> dict[str, int]:
    """The tokens in the rows, with their ids, that a model does not share.

    BOS and EOS of rows of text may have other names in a model's own tokenizer, because they are no text.
    """
    ends = {rows.info["bos_id"], rows.info["eos_id"]} if rows.classes is None else set()
    unshared = {}
    for token, held in rows.info.get("added_tokens", {}).items():
        number = held["id"]
        has_name = own is None or number in ends or own.id_to_token(number) == token
        if number >= n_rows or not has_name:
            unshared[token] = number
    return unshared


def _require_rows(rows: Mapping[str, TokenRows], tokens: Mapping[str, dict[str, int]], n_rows: int, name: str) -> None:
    """Refuse a model that has no row for an id of the rows that is not an added token."""
    for corpus, of in rows.items():
        known = set(tokens[corpus].values())
        strange = {number for number in _ids_from(of, n_rows) if number not in known}
        if strange:
            raise InputError(
                f"model '{name}' knows ids 0 to {n_rows - 1}, but the run's tokens hold id {max(strange)}; "
                "set tokenizer: to the tokenizer this model was trained with"
            )


def _ids_from(rows: TokenRows, first: int) -> set[int]:
    """The ids in some rows that are not below `first`."""
    found: set[int] = set()
    if rows.info.get("n_ids", first + 1) > first:
        for _, ids in rows.batches(COUNT_ROWS):
            found.update(ids[ids >= first].tolist())
    return found


def _held(rows: Mapping[str, TokenRows], tokens: Mapping[str, dict[str, int]]) -> str:
    """Say which tokens the text holds that a model does not share, and how often."""
    counts: dict[str, int] = {}
    for corpus, of in tokens.items():
        for token in of:
            counts[token] = counts.get(token, 0) + rows[corpus].info["added_tokens"][token]["n"]
    shown = named(f"{token!r:.40} {number:,} times" for token, number in counts.items())
    return (
        f"the text holds {len(counts)} of the run's tokens that the model does not share, because it has no embedding "
        f"row for them, or its own tokenizer has not these tokens under their ids: {shown}"
    )


def _ends(folder: Path, n_rows: int, name: str) -> tuple[int, int]:
    """A model's own BOS and EOS."""
    bos, eos = special_ids(folder).values()
    if max(bos, eos) >= n_rows:
        raise InputError(
            f"models.{name}: the model must have embedding rows for its own BOS and EOS, which it reads in place of "
            f"tokens that are left out, but has {n_rows} rows, and their ids are {bos} and {eos}; save the model again "
            "with its own tokenizer"
        )
    return bos, eos


def _n_left_out(rows: TokenRows) -> int:
    """The number of tokens that are left out because they are not shared."""
    n_left_out = 0
    for start in range(0, len(rows.ids), COUNT_ROWS):
        numbers = range(start, min(start + COUNT_ROWS, len(rows.ids)))
        n_left_out += int((rows.text_mask(numbers) & ~rows.shared(numbers)).sum())
    return n_left_out


def _leave_out_logits(model: PreTrainedModel, hidden: Tensor) -> None:
    """Make a model's logits of some ids minus infinity, so that no softmax and no argmax sees them."""
    if not len(hidden):
        return

    def leave_out(module: torch.nn.Module, args: tuple, output: object) -> None:
        logits = getattr(output, "logits", None)
        assert isinstance(logits, Tensor)
        logits[..., hidden.to(logits.device)] = -torch.inf

    model.register_forward_hook(leave_out)
