"""The chat template of a tokenizer in somebody's folder, found without opening the tokenizer."""

from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json, require_regular
from saelineage.foreign.tokenizers import CONFIG_FILE

TEMPLATE_FILE, TEMPLATE_KEY, DEFAULT = "chat_template.jinja", "chat_template", "default"
MOST_TEMPLATE_BYTES = 1 << 20
"""Limit for a template. The longest in use have some 20 kB."""


def chat_template(folder: Path | str) -> str | None:
    """The chat template in a folder, of several the one called `default`; None if there is none.

    It lies in chat_template.jinja, which counts where there are both, or in tokenizer_config.json, there as a text or
    as a list of mappings with `name` and `template`.

    Raises:
        InputError: if it is too large, or not text.
    """
    path = Path(folder, TEMPLATE_FILE)
    if path.exists():
        require_regular(path, MOST_TEMPLATE_BYTES)
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise InputError(f"'{path}' must be UTF-8 text, but {error}; fetch it again") from error
    config = Path(folder, CONFIG_FILE)
    template = read_foreign_json(config).get(TEMPLATE_KEY) if config.exists() else None
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get(DEFAULT)
    if template is not None and not isinstance(template, str):
        raise InputError(f"'{config}': {TEMPLATE_KEY} must be text, not {type(template).__name__}; remove it")
    if template is not None and len(template.encode("utf-8", "surrogatepass")) > MOST_TEMPLATE_BYTES:
        raise InputError(f"'{config}': {TEMPLATE_KEY} must have at most {MOST_TEMPLATE_BYTES} bytes; remove it")
    return template or None


def no_template(folder: Path | str) -> str:
    """The message about a tokenizer that cannot write conversations."""
    return (
        f"tokenizer: '{folder}' must have a chat template to write corpora with a messages_column, but has none; use "
        "the tokenizer of a chat model (its folder or repository holds chat_template.jinja, or chat_template in "
        "tokenizer_config.json), or a text_column"
    )
