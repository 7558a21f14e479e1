"""UsageError: what the tools show as one line; importing it imports nothing heavy."""


class UsageError(Exception):
    """The user's mistake: shown as one line, without a traceback."""
