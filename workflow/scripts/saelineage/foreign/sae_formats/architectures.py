"""Names of architectures in SAELens's configs, and keys that must have one value.

Every SAE that a run writes is read with these, so this module holds nothing else: its edits make all SAEs stale.
"""

from collections.abc import Mapping
from pathlib import Path

from saelineage.errors import InputError

SAELENS_NAMES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
"""SAELens's names of the architectures here."""


def require_settings(config: Mapping, settings: Mapping, path: Path | str) -> None:
    """Refuse a config that sets one of these keys to another value; missing keys pass.

    Raises:
        InputError: naming the first such key.
    """
    for key, value in settings.items():
        if config.get(key, value) != value:
            raise InputError(f"'{path}': {key} must be {value!r}, not {config[key]!r:.80}; use another SAE")


def require_architecture(config: Mapping, path: Path | str) -> None:
    """Refuse a SAELens config of another architecture than those here.

    Raises:
        InputError: naming the architecture.
    """
    if config.get("architecture") not in list(SAELENS_NAMES.values()):
        raise InputError(
            f"'{path}': architecture must be one of {sorted(SAELENS_NAMES.values())}, not "
            f"{config.get('architecture')!r:.80}; use an SAE of one of these"
        )
