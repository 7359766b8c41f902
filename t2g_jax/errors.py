"""The base class of every error that a user can mend."""


class T2GError(ValueError):
    """Something the user gave us cannot be used; the message names it and says what to do.

    The command line prints it as one line and exits with status 2. Anything else that is raised is
    a defect of ours and keeps its traceback.
    """
