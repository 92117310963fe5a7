"""The one error that a user of the data, the model or the command line can cause."""


class UserError(ValueError):
    """Bad input, told in one line.

    The message names the file or config key, the value found and what was expected. The command line prints
    it as it is and exits with status 2; a traceback would only hide it.
    """
