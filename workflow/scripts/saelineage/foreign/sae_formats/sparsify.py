"""sparsify's folders of one hookpoint."""

from collections.abc import Mapping
from pathlib import Path

from saelineage.errors import InputError
from saelineage.files.foreign import read_foreign_json
from saelineage.foreign.sae_formats.architectures import require_settings
from saelineage.foreign.sae_formats.refusals import TRANSCODER, WAY_ROUND
from saelineage.foreign.sae_formats.values import REMEDY, storable, whole_number
from saelineage.foreign.sae_inputs import SaeInput

SETTINGS = {"activation": "topk", "skip_connection": False, "signed": False}
"""Options of sparsify's sparse coders; other values cannot be imported. `multi_topk` only affects training."""


def read_config(path: Path) -> dict:
    """Read a config.

    Raises:
        InputError: if it is no such config, or the coder computes what cannot be imported.
    """
    config = read_foreign_json(path, REMEDY)
    if config.get("transcode") not in (None, False):
        raise InputError(
            f"'{path}': transcode must be False, not {config['transcode']!r:.40}, because this is a "
            f"{TRANSCODER.removeprefix('it is a ')}; {WAY_ROUND}"
        )
    require_settings(config, SETTINGS, path)
    return config


def describe(config: Mapping, where: str) -> SaeInput:
    d_in, factor = whole_number(config.get("d_in")), whole_number(config.get("expansion_factor"))
    d_sae = whole_number(config.get("num_latents")) or (d_in * factor if d_in and factor else None)
    return SaeInput(
        where, d_in=d_in, d_sae=d_sae, k=whole_number(config.get("k")), original={"config": storable(dict(config))}
    )
