"""The exception tree and the exit codes that shells, pods and Airflow see.

Every message says what is wrong, where (file, field, value) and what to do about it. An orchestrator decides
from the exit code alone whether to retry, so the code belongs to the exception, not to the caller.
"""

from collections.abc import Sequence


class Scan2TwinError(Exception):
    """Base of every error that scan2twin raises on purpose. Exit code 1: the stage failed; a retry may help."""

    exit_code = 1


class InputError(Scan2TwinError):
    """The input or the configuration is wrong: the same input fails again, so nobody retries. Exit code 2.

    `reasons` holds every reason found, not only the first; the message lists them one a line.
    """

    exit_code = 2

    def __init__(self, *reasons: str) -> None:
        self.reasons: Sequence[str] = reasons
        super().__init__("\n".join(reasons))


class CaptureError(InputError):
    """A capture bundle breaks the capture format, or cannot give a model."""


class ConfigError(InputError):
    """A configuration key or value is refused."""


class MissingArtifactError(InputError):
    """A stage was asked to run before the stages it reads from."""


class StoreError(Scan2TwinError):
    """The artifact store cannot be reached or answers wrongly after all retries. Exit code 3: retry later."""

    exit_code = 3


class NotFoundError(StoreError):
    """No object has that key."""


class IntegrityError(StoreError):
    """Bytes read from the store do not have the size or SHA-256 their manifest states."""


class ResourceError(Scan2TwinError):
    """Memory or disk ran out. Exit code 4: retry with a smaller preset or a larger machine."""

    exit_code = 4


class ReconstructionError(Scan2TwinError):
    """The optimisation did not give a usable mesh (non-finite loss, empty surface)."""
