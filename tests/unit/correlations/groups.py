"""Files of correlations and replicates with one partner."""

from pathlib import Path

from saelineage.correlations.bootstrap import Replicates, replicates_group
from saelineage.correlations.matches import Correlation, correlation_group
from saelineage.files.tensors import writing_groups


def save_correlation(correlation: Correlation, path: Path) -> Path:
    """Write a file of an SAE's correlations that holds one partner."""
    with writing_groups(path, 1, 64) as groups:
        groups.add(correlation.names[1], *correlation_group(correlation))
    return path


def save_replicates(replicates: Replicates, path: Path) -> Path:
    """Write a file of an SAE's replicates that holds one partner."""
    with writing_groups(path, 1, 64) as groups:
        groups.add(replicates.names[1], *replicates_group(replicates))
    return path
