"""The one exception whose message is written for the user."""

DECIDES_RESULTS = False


class InputError(ValueError):
    """Input that the workflow cannot use: a config value, a file, or an answer of the hub.

    The message says what must hold, the value, the file or config key to look at, and the next step. Scripts print it
    without a traceback (see `jobs.job.job`). Any other exception is a defect and keeps its traceback.
    """
