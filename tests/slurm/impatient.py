"""Snakemake with a SLURM plugin that polls the queue every second.

    python tests/slurm/impatient.py ARGUMENTS OF SNAKEMAKE

By default the plugin polls less and less often, down to every three minutes, and tests would wait for that.
"""

import sys

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

SECONDS = 1.0

if __name__ == "__main__":
    Executor.next_seconds_between_status_checks = property(lambda self: SECONDS, lambda self, seconds: None)
    sys.exit(main())
