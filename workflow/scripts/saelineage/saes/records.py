"""What an SAE takes over from those that it starts from, and what its files say of its training."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from saelineage.files.atomic import write_text
from saelineage.foreign.saelens_names import input_keys
from saelineage.saes.sae import Sae, average, load_sae, recorded_l0, save_sae
from saelineage.saes.trainer import settings_kept
from saelineage.saes.training import Trained

logger = logging.getLogger(__name__)


class Start(NamedTuple):
    """The start of an SAE's training."""

    folders: list[str]
    """Of the SAEs whose average it is; none for random weights."""
    sae: Sae | None
    l0: float | None
    """Mean l0 that they record; None unless all do."""

    @classmethod
    def at(cls, folders: Sequence[str]) -> "Start":
        """Read the SAEs in some folders."""
        recorded = [l0 for folder in folders if (l0 := recorded_l0(folder)) is not None]
        l0 = sum(recorded) / len(recorded) if recorded and len(recorded) == len(folders) else None
        return cls(list(folders), average([load_sae(path) for path in folders]) if folders else None, l0)

    def kept(self, settings: Mapping, name: str) -> dict:
        """The settings that an SAE takes over from this start, which the log says.

        Args:
            settings: its settings.
            name: its name, for the log.
        """
        kept = settings_kept(settings, self.sae, self.l0) if self.sae is not None else {}
        if kept:
            logger.info("%s keeps settings of the SAE that it starts from: %s", name, kept)
        return kept


class Record(NamedTuple):
    """What the files of an SAE say of its training."""

    model: str
    source: Mapping
    """`name` and `revision` by which others open the model."""
    headers: Sequence[Mapping]
    """Of the activations' shards: hookpoint, n_ctx, left_out_ids, saelens."""


def save_trained(
    folder: Path,
    sae: str,
    trained: Trained,
    record: Record,
    start: Start,
    settings: Mapping,
    kept: Mapping,
    n_left_out: int,
) -> None:
    """Write the folder of an SAE.

    Args:
        folder: of the SAE.
        sae: its name.
        trained: the SAE and its curve.
        record: of its activations.
        start: the start of its training.
        settings: its settings, those that it took over included.
        kept: the settings that it took over.
        n_left_out: number of tokens that were left out.
    """
    provenance = input_keys(record.headers, record.source)
    named = {"model": record.model, "sae": sae, "hookpoint": record.headers[0]["hookpoint"]}
    training = {"settings": settings, "n_tokens_left_out": n_left_out, "starts": start.folders}
    if start.l0 is not None:  # an SAE that starts from this one keeps it too
        provenance["l0"], training["kept"] = start.l0, kept
    save_sae(trained.sae, folder, provenance | {"saelineage": named | training})
    write_text(folder / "training.csv", trained.curve.to_csv(index=False))
