"""Conversations become rows: the template's ids, a class for each token, and nothing that fills a row up counts."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from saelineage import chat
from saelineage.chat import classes_of, encode_conversations, write_conversations
from saelineage.corpora.messages import CLASSES
from saelineage.correlations.bootstrap import documents_of
from saelineage.errors import InputError
from saelineage.files.atomic import read_json
from saelineage.tokens import TEXT, ControlStrings, TokenRows, load_tokenizer, write_rows, write_sidecar
from tests.chats import CHATML, END, START, chat_tokenizer, said

TALK = said(("system", "You are a cat."), ("user", "Who sat?"), ("assistant", " The owl did.\n"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_tokenizer(tmp_path_factory.mktemp("chat"))


def encoded(folder: Path, messages: Sequence[dict] = TALK) -> chat.Conversation:
    return next(encode_conversations([json.dumps(messages)], folder))


def by_class(conversation: chat.Conversation) -> dict[str, str]:
    """The text of the tokens of each class."""
    pieces = [conversation.text[start:end] for start, end in conversation.offsets]
    classes = [CLASSES[number - 1] for number in conversation.classes]
    return {name: "".join(p for p, c in zip(pieces, classes, strict=True) if c == name) for name in CLASSES}


def refusal(folder: Path, messages: Sequence[dict] = TALK) -> str:
    with pytest.raises(InputError) as raised:
        encoded(folder, messages)
    return str(raised.value)


# --- templates ---


def test_a_conversation_has_the_ids_that_transformers_gives_it(folder: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)
    assert encoded(folder).ids.tolist() == expected
    assert encoded(folder).ids[0] == tokenizer.convert_tokens_to_ids(START)


def test_each_token_has_the_class_of_its_message_or_of_the_template(folder: Path):
    assert by_class(encoded(folder)) == {
        "template": f"{START}system\n{END}\n{START}user\n{END}\n{START}assistant\n{END}\n",
        "system": "You are a cat.",
        "user": "Who sat?",
        "assistant": " The owl did.\n",
    }


def test_contents_that_repeat_the_template_are_still_contents(folder: Path):
    talk = said(("user", f"user\n{END}\n{START}assistant\n"), ("assistant", "assistant"))
    found = by_class(encoded(folder, talk))
    assert found["user"] == talk[0]["content"]
    assert found["assistant"] == "assistant"


def test_a_system_message_may_stand_inside_the_first_turn(tmp_path: Path):
    # As in Llama 2's template: [INST] <<SYS>>...<</SYS>> ... [/INST].
    template = (
        "{% for m in messages[1:] %}{% if m.role == 'user' %}[INST] {% if loop.first %}<<SYS>>{{ messages[0].content }}"
        "<</SYS>>{% endif %}{{ m.content.strip() }} [/INST]{% else %}{{ m.content.strip() }}{% endif %}{% endfor %}"
    )
    assert by_class(encoded(chat_tokenizer(tmp_path, template))) == {
        "template": "[INST] <<SYS>><</SYS>> [/INST]",
        "system": "You are a cat.",
        "user": "Who sat?",
        "assistant": "The owl did.",
    }


def test_what_a_template_leaves_out_or_changes_is_no_error(tmp_path: Path):
    left_out = "{% for m in messages if m.role != 'system' %}<{{ m.content | upper }}>{% endfor %}"
    found = by_class(encoded(chat_tokenizer(tmp_path, left_out)))
    assert found == {"template": "<><>", "system": "", "user": "WHO SAT?", "assistant": " THE OWL DID.\n"}


def test_a_token_of_both_template_and_message_is_the_message_s():
    characters = np.array([1, 1, 3, 3, 1], dtype=np.uint8)
    # [0, 2) is the template's, [1, 3) both, [4, 5) the template's, and a token without text too.
    assert classes_of([(0, 2), (1, 3), (4, 5), (0, 0)], characters).tolist() == [1, 3, 1, 1]


def test_templates_see_a_fixed_date(tmp_path: Path):
    template = "{% if strftime_now is defined %}{{ strftime_now('%Y') }} {% endif %}{{ messages[0].content }}"
    assert encoded(chat_tokenizer(tmp_path, template)).text == "26 Jul 2024 You are a cat."


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param("{{ raise_exception('roles must alternate') }}", "(roles must alternate)", id="refuses"),
        pytest.param("{{ ''.__class__.__mro__ }}", "is unsafe", id="leaves the sandbox"),
        pytest.param("{% if %}", "does not render a conversation (", id="no template"),
        pytest.param("{{ 'a' * 10**11 }}", "(MemoryError)", id="takes memory"),
        pytest.param("{{ 'a' * 2000000 }}", "must write at most 10487", id="writes too much"),
        pytest.param(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 0.2 s",
            id="takes time",
        ),
        pytest.param(
            "{% if messages[0].content | length > 9 %}a{% endif %}b{{ messages[0].content }}c", "depends", id="looks"
        ),
    ],
)
def test_hostile_templates_end_in_one_sentence(tmp_path: Path, template, reason, monkeypatch):
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.2)
    message = refusal(chat_tokenizer(tmp_path, template))
    assert reason in message
    assert message.startswith('conversation 1 ([{"role": "system"')
    assert "\n" not in message


def test_a_tokenizer_without_a_template_is_refused_with_the_next_step(tmp_path: Path):
    message = refusal(chat_tokenizer(tmp_path, None))
    assert message.startswith(f"tokenizer: '{tmp_path}' must have a chat template")
    assert "use the tokenizer of a chat model" in message


# --- rows ---


@pytest.fixture
def rows(folder: Path, tmp_path: Path) -> TokenRows:
    """A conversation that fits, and one that is cut."""
    path = tmp_path / "probe.npy"
    talks = [said(("user", "Who sat?")), TALK]
    write_sidecar(path, write_conversations(map(json.dumps, talks), folder, 16, None, path))
    return TokenRows(path)


def test_a_row_holds_one_conversation_filled_up_with_eos_or_cut(folder: Path, rows: TokenRows):
    short, long = encoded(folder, said(("user", "Who sat?"))), encoded(folder)
    end = load_tokenizer(folder).token_to_id(END)
    assert rows.ids[0].tolist() == short.ids.tolist() + [end] * (16 - len(short.ids))
    assert rows.ids[1].tolist() == long.ids[:16].tolist()
    assert rows.classes is not None
    assert rows.classes[0].tolist() == short.classes.tolist() + [0] * (16 - len(short.ids))
    facts = {"n_rows": 2, "n_cut": 1, "n_filled": 16 - len(short.ids), "n_control_strings": 0}
    assert rows.info.items() >= facts.items()
    # A conversation is a document, of the ids that fit into its row.
    share = 16 / (16 + len(short.ids))
    assert (rows.info["n_documents"], rows.info["largest_document_share"]) == (2, share)


def test_turns_that_bos_opens_and_eos_ends_are_read_and_fillings_are_not(folder: Path, rows: TokenRows):
    n_ids = len(encoded(folder, said(("user", "Who sat?"))).ids)
    # BOS opens the row, which is not read; EOS at the end of the turn is, and those after the conversation are not.
    expected = [False] + [True] * (n_ids - 1) + [False] * (16 - n_ids)
    assert rows.text_mask(range(2)).tolist() == [expected, [False] + [True] * 15]
    assert rows.predicted(range(1)).tolist() == [[True] * n_ids + [False] * (16 - n_ids)]
    assert documents_of(rows).reshape(2, 16).tolist() == [[0 if text else -1 for text in expected], [-1] + [1] * 15]


def test_max_tokens_of_conversations_are_whole_rows(folder: Path, tmp_path: Path):
    info = write_conversations([json.dumps(TALK)] * 5, folder, 16, 40, tmp_path / "a.npy")
    assert info["n_rows"] == 2


def test_control_strings_in_messages_are_counted(folder: Path, tmp_path: Path):
    talk = said(("user", f"{START}{END} <|im_"))
    assert write_conversations([json.dumps(talk)], folder, 16, None, tmp_path / "a.npy")["n_control_strings"] == 2


def test_what_fills_a_row_up_is_neither_trained_on_nor_measured(rows: TokenRows):
    import torch

    from saelineage.models.losses import next_token_loss
    from saelineage.models.predictions import Predictions
    from saelineage.models.training import Mixture, collate

    mixture = Mixture({"talk": rows}, {"talk": 1.0}, 2, seed=0)
    order = [int(row) for _, row in mixture.order]
    batch = collate([mixture[0], mixture[1]])
    ids = torch.from_numpy(np.asarray(rows.ids)[order].astype(np.int64))
    predicted = torch.from_numpy(rows.predicted(range(2))[order])
    assert torch.equal(batch["input_ids"], ids)
    assert torch.equal(batch["labels"], torch.where(predicted, ids, -100))
    # Equal logits give every prediction the loss log 7; the first id of a row is not predicted.
    loss, _, n = next_token_loss(Predictions.of(torch.zeros(2, 16, 7)), ids % 7, predicted)
    assert n == int(predicted.sum()) - 2
    assert loss == pytest.approx(n * np.log(7))


# --- plain text ---


def test_control_strings_of_a_text_are_counted(folder: Path):
    counter = ControlStrings(load_tokenizer(folder))
    # <s>, </s> and <pad> are control tokens of this tokenizer too.
    assert counter.count(f"a {START}user{END}{END} <|im_ </s> < <pad") == 4


def test_control_strings_of_a_text_are_spelled_out_or_become_ids(folder: Path, tmp_path: Path):
    path, text = tmp_path / "a.npy", f"The cat{START} sat on the mat and the dog."
    start = load_tokenizer(folder).token_to_id(START)
    spelled = write_rows([text] * 3, folder, 8, None, path)
    assert (spelled["special"], spelled["n_control_strings"]) == (TEXT, 3)
    assert start not in np.load(path)[:, 1:]
    ids = write_rows([text] * 3, folder, 8, None, path, special="ids")
    assert ids["n_control_strings"] == 3
    assert (np.load(path)[:, 1:] == start).sum() == 3


def test_the_template_is_kept_in_the_tokenizer_s_config(tmp_path: Path, caplog):
    from make_tokenizer import take_tokenizer

    several = chat_tokenizer(tmp_path / "own", {"default": CHATML, "tool_use": "tools"})
    take_tokenizer({"source": "path", "path": str(several)}, tmp_path / "kept")
    assert read_json(tmp_path / "kept" / "tokenizer_config.json")["chat_template"] == CHATML
    assert "has the chat templates default, tool_use, of which default is used" in caplog.text
    assert encoded(tmp_path / "kept").ids.tolist() == encoded(several).ids.tolist()
