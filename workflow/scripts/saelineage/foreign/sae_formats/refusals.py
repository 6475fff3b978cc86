"""What is published beside SAEs and is none: recognised by names, before anything large is downloaded."""

import re
from collections.abc import Collection

from saelineage.errors import InputError

TRANSCODER = (
    "it is a transcoder, which reconstructs another place than the one it reads, so its latents are not an "
    "autoencoder's of one place"
)
CLT = f"it is a cross-layer {TRANSCODER.removeprefix('it is a ')}"
CROSSCODER = "it is a crosscoder, whose latents read several places at once"
TEMPORAL = (
    "it is a temporal SAE, whose latents depend on earlier tokens through attention layers of the SAE's own, not on "
    "one token's activations"
)
WAY_ROUND = "import an SAE that reconstructs its own input, such as those of the residual stream"
NAMES = {
    r"(^|[-_])transcoders?([-_]|$)": TRANSCODER,
    r"(^|[-_])clts?([-_]|$)": CLT,
    r"(^|[-_])crosscoders?([-_]|$)": CROSSCODER,
}
"""Patterns of a name of a folder or repository, with the reason for a refusal."""
FILES = {
    r"W_enc_\d+\.safetensors": CLT,
    r"params_layer_\d+\.safetensors": CLT,
    r"layer_\d+\.safetensors": TRANSCODER,
    r"latest_ckpt\.safetensors": TEMPORAL,
}
"""Patterns of files that no format of SAEs has, with the reason."""


def require_no_transcoders(names: Collection[str], place: str) -> None:
    """Refuse a folder or repository whose files are those of something else than SAEs.

    Raises:
        InputError: with the reason.
    """
    for pattern, reason in FILES.items():
        if match := next((name for name in sorted(names) if re.fullmatch(pattern, name)), None):
            raise InputError(f"'{place}/{match[:80]}' cannot be imported, because {reason}; {WAY_ROUND}")


def require_sae_names(names: Collection[str], where: str) -> None:
    """Refuse an SAE without a config whose folders are named as something else.

    Args:
        names: names of the folders that it lies in.
        where: its name for messages.

    Raises:
        InputError: with the reason.
    """
    for pattern, reason in NAMES.items():
        if match := next((name for name in names if re.search(pattern, name.lower())), None):
            raise InputError(
                f"'{where}' cannot be imported, because {reason}, as '{match[:80]}' in its path says; {WAY_ROUND}"
            )
