"""Hostile text: documents that a report must show as text, character by character, and never run."""

import json

from saelineage.corpora.documents import document_digest, split_of, without_lone_surrogates
from saelineage.corpora.samples.kinds import sample_documents

CALL = "alert('hostile')"
PRODUCT = (98765, 4321)
"""Two numbers whose product appears in a page only if something has evaluated the template."""
SUM = "{} * {}".format(*PRODUCT)

TEXTS = {
    "script": f"<script>{CALL}</script> </textarea></title></style> <!-- <![CDATA[ ]]> --> <b>bold</b>",
    "end of a script": f"</script><script>{CALL}</script>",
    "handlers": f'<img src=x onerror="{CALL}"> <svg/onload={CALL}> " onmouseover="{CALL}" \' autofocus',
    "links": f"javascript:{CALL} <a href='javascript:{CALL}'>a</a> <base href=//example.invalid/>",
    "templates": f"{{{{ {SUM} }}}} {{% raw %}} ${{{SUM}}} <%= {SUM} %> {{{{ self.__init__ }}}} %(message)s {{0}}",
    "entities": "&lt;b&gt; &#60;i&#62; &amp;amp; &nbsp; <b>7</b><br><extra></extra> %{text}",
    "formula": f"=1+1\n@{SUM}\n+cmd|' /C calc'!A0,\"quoted\"\ttab",
    "NUL": "before\0after\0",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85\x9b \x1b[31mred\x1b[0m",
    "right to left": "\u202egnp.exe\u202c \u2067\u05d0\u05d1\u2069 \u200f\u200d\u200b",
    "line separators": "one\u2028two\u2029three\x0b\x0c\x1c",
    "no characters": "\ufffe\uffff\ufdd0\U0010ffff",
    "byte order mark inside": "a\ufeffb",
    "combining": "e" + "\u0301" * 60 + " \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "special tokens": "<s></s><pad><|endoftext|>",
    "prototypes": '{"__proto__": {"constructor": null}} __proto__ constructor toString',
}
SURROGATES = {"half a pair": "cut off \ud83d, \ude00", "whole pair": "\U0001f600"}
LONG_LINE = "x" * 100_000


def english_with_hostile_text(max_bytes: int, fractions: dict) -> str:
    """Return the English sample as JSON lines, after hostile documents for probe and train, and before a long line."""
    texts = (TEXTS | SURROGATES).values()
    first = [in_split(text, split, fractions)[0] for split in ("probe", "train") for text in texts]
    last = [in_split(LONG_LINE, "probe", fractions)[-1]]
    return json_lines([*first, *sample_documents("english", max_bytes, 0), *last])


def in_split(text: str, split: str, fractions: dict) -> list[str]:
    """Append numbers to a text with which it is dealt to a split, from the first place in the split to the last."""
    numbered = {
        f"{text} {number}": document_digest(without_lone_surrogates(f"{text} {number}")) for number in range(200)
    }
    return sorted((text for text in numbered if split_of(numbered[text], fractions) == split), key=numbered.__getitem__)


def json_lines(texts: list[str]) -> str:
    """Return JSON lines in ASCII, with every other character escaped, including lone surrogates."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)
