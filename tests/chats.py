"""A tokenizer with control tokens and a chat template, for tests."""

from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from saelineage.tokens import EOS, PAD, train_tokenizer

START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}"
)
TEXTS = [
    "system user assistant\nsystem\nuser\nassistant\n",
    "The cat and the dog sat on the mat.",
    "Who sat on the roof? The owl did.",
    "You are a helpful cat.",
] * 20


def chat_tokenizer(
    folder: Path, template: str | dict | None = CHATML, control: tuple[str, ...] = (), **options
) -> Path:
    """Write a byte-level tokenizer whose BOS opens a turn and whose EOS ends it, as SmolLM2's do."""
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (START, END, *control)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PAD)
    wrapped.chat_template = template
    wrapped.save_pretrained(folder, **options)
    return folder


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Messages of some roles and contents."""
    return [{"role": role, "content": content} for role, content in turns]


__all__ = ["CHATML", "END", "EOS", "START", "chat_tokenizer", "said"]
