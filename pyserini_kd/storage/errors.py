"""The error for wrong user input."""


class InputError(ValueError):
    """Wrong user input. The message says what is wrong, where, and what to do; commands exit with code 2.

    `parameter` names the wrong argument or setting. The message may name others in backquotes. Commands show both as flags.

    >>> str(InputError("must be 1 or more, not 0", "depth"))
    'depth: must be 1 or more, not 0'
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.message, self.parameter = message, parameter

    def __str__(self) -> str:
        """The message, after the name of the parameter if there is one."""
        return f"{self.parameter}: {self.message}" if self.parameter else self.message


class NotFound(InputError):
    """A document or an index of that name does not exist; over HTTP the status is 404."""
