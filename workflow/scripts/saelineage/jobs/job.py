"""What surrounds every job: its log, its Snakemake, its inputs, and the record of what it made."""

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from saelineage.errors import InputError
from saelineage.files.atomic import disk_fault
from saelineage.jobs.locks import in_job
from saelineage.jobs.manifests import record_job, require_inputs

DECIDES_RESULTS = False

logger = logging.getLogger("saelineage")


@contextmanager
def job(snakemake: Any) -> Iterator[dict[str, object]]:
    """Run a job: log it, end it when its Snakemake is gone or an input is damaged, and write its manifests at the end.

    An `InputError`, or a disk that cannot be written, ends the job with a message alone, in the log and on stderr;
    other exceptions keep their traceback.

    Args:
        snakemake: the script's object: log, inputs, outputs, params, wildcards and threads.

    Yields:
        A dict for what the job finds out and puts on record, such as the commit behind a hub revision.
    """
    found: dict[str, object] = {}
    with job_log(snakemake.log[0], snakemake.input):
        yield found
        record_job(snakemake, **found)


@contextmanager
def job_log(path: Path | str, inputs: Iterable[str] = ()) -> Iterator[None]:
    """Send log records and warnings of a job to its log file; end it when its Snakemake is gone, or an input damaged.

    An `InputError`, and a disk that cannot be written, ends the job with a message alone, in the log and on stderr;
    other exceptions keep their traceback.

    Args:
        path: the log file, begun anew.
        inputs: the job's files, which are compared with their manifests where they were changed later.
    """
    with in_job():
        handler = _opened(path)
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
        logging.captureWarnings(True)
        warnings.simplefilter("default")
        try:
            require_inputs(inputs)
            yield
        except Exception as error:
            message = str(error) if isinstance(error, InputError) else disk_fault(error)
            if message is None:
                logger.exception("the job failed")
                raise
            logger.error("%s", message)
            sys.exit(f"error: {message}")
        finally:
            with suppress(OSError):
                handler.flush()


def _opened(path: Path | str) -> logging.Handler:
    """A new log file; a disk that cannot be written ends the job here."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    except OSError as error:
        sys.exit(f"error: {disk_fault(error) or error}")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.handleError = lambda record: None  # a full disk is told of once, not with every line that the log loses
    return handler
