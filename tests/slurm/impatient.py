"""Snakemake, whose plugin for SLURM looks at the queue every second, in place of less and less often.

    python tests/slurm/impatient.py ARGUMENTS OF SNAKEMAKE

By itself the plugin lets up to three minutes pass from one look to the next, and a test would wait for that.
"""

import sys

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

SECONDS = 1.0

if __name__ == "__main__":
    Executor.next_seconds_between_status_checks = property(lambda self: SECONDS, lambda self, seconds: None)
    sys.exit(main())
