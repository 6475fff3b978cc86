"""The one exception that is meant for the user's eyes."""

DECIDES_RESULTS = False


class InputError(ValueError):
    """Something the user gave cannot be worked with.

    The message says what must hold, the value met, the file or config key to look at, and the next step. Scripts print
    it without a traceback (see `logs.job_log`); anything else that is raised is a defect and keeps its traceback.
    """
