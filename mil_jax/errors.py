"""The errors that people see, so that a library user and a command read the same sentence."""


class InputError(ValueError):
    """Input that cannot be used: it names the argument, the value that came and what would do.

    Args:
        argument: the argument as the caller wrote it, for example ``bag_size``.
        value: what came.
        remedy: what would do, as a phrase that can follow a colon.
    """

    def __init__(self, argument: str, value: object, remedy: str):
        self.argument, self.value, self.remedy = argument, value, remedy
        super().__init__(f"{argument} = {value!r}: {remedy}")


class RunError(Exception):
    """A run that cannot go on, through no fault of its input: the message says what is kept and what to do."""
