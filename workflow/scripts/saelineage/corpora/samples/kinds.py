"""Generated text, so that the workflow can run without a network: English, short stories and Lua programs."""

from collections.abc import Iterator
from hashlib import blake2b
from random import Random

from saelineage.corpora.samples import english, lua, stories

KINDS = ("english", "stories", "lua")


def sample_documents(kind: str, n_bytes: int, seed: int) -> Iterator[str]:
    """Yield distinct documents of one kind until at least `n_bytes` of UTF-8 text has been produced.

    The same arguments give the same bytes on any platform, and a larger `n_bytes` only adds documents at the end.

    Raises:
        ValueError: if the kind is unknown or `n_bytes` is below 1.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if n_bytes < 1:
        raise ValueError(f"n_bytes must be at least 1, got {n_bytes}")
    return _documents(kind, n_bytes, seed)


def _documents(kind: str, n_bytes: int, seed: int) -> Iterator[str]:
    write_document = {"english": english.document, "stories": stories.document, "lua": lua.document}[kind]
    rng = Random(f"{kind}/{seed}")
    digests: set[bytes] = set()
    n_written = 0
    while n_written < n_bytes:
        text = write_document(rng)
        encoded = text.encode()
        digest = blake2b(encoded, digest_size=16).digest()
        if digest not in digests:
            digests.add(digest)
            n_written += len(encoded)
            yield text
