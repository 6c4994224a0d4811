"""The exception tree.

Every error that a user can cause is a `LasagnaError`. Its message says what was wrong, what was found and what to do;
the command line prints it without a traceback and exits with `exit_code`.
"""


class LasagnaError(Exception):
    """Base of every error that a user can cause."""

    exit_code = 2


class ImageError(LasagnaError):
    """An image that cannot be read, or is over the limits on bytes and pixels."""


class QueryError(LasagnaError):
    """A class list or a prompt that cannot be asked."""


class CheckpointError(LasagnaError):
    """A checkpoint folder that is missing, incomplete or of another shape."""


class RegistryError(LasagnaError):
    """A fine-tuned version, or an alias of one, that is not there or cannot be changed so."""


class ConfigError(LasagnaError):
    """A setting, a recipe or a labelling configuration that cannot be used."""


class DataError(LasagnaError):
    """A data set that is missing, incomplete or not in its published format."""


class ServiceError(LasagnaError):
    """Redis or Label Studio cannot be reached, or refused what was asked."""


class TrainingError(LasagnaError):
    """A training run that had to stop; its last good state is left as it was."""


def in_words(error: BaseException) -> str:
    """What to tell of an error: the message of ours, which is complete; of any other its type too."""
    return str(error) if isinstance(error, LasagnaError) else f"{type(error).__name__}: {error}"
