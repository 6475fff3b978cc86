"""Logging of jobs: everything into the job's log file, progress bars on a terminal."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saelineage.errors import InputError

logger = logging.getLogger("saelineage")


@contextmanager
def job_log(path: Path | str) -> Iterator[None]:
    """Send log records and warnings of a job to its log file.

    An `InputError` ends the job with its message alone, in the log and on stderr; others keep their traceback.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    try:
        yield
    except InputError as error:
        logger.error("%s", error)
        sys.exit(f"error: {error}")
    except Exception:
        logger.exception("the job failed")
        raise
    finally:
        handler.flush()


def on_terminal() -> bool:
    """Whether a progress bar has anyone to look at it."""
    return sys.stderr.isatty()
