"""The errors that a user may meet, each with the exit code of the command that it ends.

Raised anywhere on the way, caught once: `cli/console.py` prints one line and returns the code. What must hold: a message names
the value, the limit and the remedy, and what is not a `HuatuoError` is a bug and keeps its traceback. Next to read:
`cli/console.py`.
"""

# A code for each thing that a script would do next: correct the command (2), ask for more memory (3), give the same command again
# at once (4), or first look after a lost host (5).
EXIT_FAILED, EXIT_USAGE, EXIT_DOES_NOT_FIT, EXIT_STOPPED, EXIT_PEER_LOST = 1, 2, 3, 4, 5


class HuatuoError(Exception):
    """Work failed on the given input (exit code 1)."""

    exit_code = EXIT_FAILED


class ConfigError(HuatuoError):
    """Wrong usage or an impossible configuration; raised before any work is spent (exit code 2)."""

    exit_code = EXIT_USAGE


class DoesNotFitError(HuatuoError):
    """The job does not fit the devices or their memory (exit code 3)."""

    exit_code = EXIT_DOES_NOT_FIT


class StoppedError(HuatuoError):
    """A signal stopped the run and its state is saved; the same command continues it (exit code 4)."""

    exit_code = EXIT_STOPPED


class DataError(HuatuoError):
    """A dataset or plan is missing, torn, altered or belongs to other data (exit code 1)."""


class RecordError(HuatuoError):
    """A record does not have the required shape, or a dialogue format cannot render it (exit code 1)."""
