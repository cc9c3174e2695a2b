"""Every exception the runtime raises on purpose.

    RtdecodeError
    |-- SettingsError      cannot start: settings, listed with their paths (exit 2)
    |-- BundleError        an EnginePack or ParticipantBundle is missing, altered or of another schema
    |-- CheckpointError    published weights cannot be turned into an EnginePack
    |-- EngineError        an engine cannot be loaded or run
    |-- VolumeError        one volume is unusable; the run goes on
    |   |-- IncompleteFile     the file is still being written
    |   `-- SurplusSlice       its volume needs no such slice
    |-- KeysError          the file of keys cannot be used
    |-- JournalError       the record of inputs cannot be read or written
    |-- ProtocolError      a message on the wire is malformed or unknown
    |   |-- Late               the client has given up the request
    |   |-- Busy               not now: ask again
    |   |-- Forbidden          the client's key does not allow it
    |   `-- NoTopic            nothing is published under that name
    |-- CalibrationError   calibration data cannot give an adapter
    `-- TrainingError      a training cannot go on, or cannot be resumed

A message says what was expected, what came and what to do.
"""

from __future__ import annotations

from pathlib import Path


def named(name: str) -> str:
    """Return the name of a file as text that can be sent and printed: bytes that are no UTF-8 become U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)


class RtdecodeError(Exception):
    """Base of all errors raised on purpose."""


class SettingsError(RtdecodeError):
    """The settings cannot be used.

    Parameters
    ----------
    problems : list of str
        One line per problem, each with its path in the settings file.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class BundleError(RtdecodeError):
    """A sealed folder is missing, incomplete, altered or of an unknown schema."""


class CheckpointError(RtdecodeError):
    """Published weights are not what their layout says."""


class EngineError(RtdecodeError):
    """An inference engine cannot be loaded or run."""


class VolumeError(RtdecodeError):
    """A volume cannot be used.

    Parameters
    ----------
    path : Path
        The file at fault.
    field : str
        What was looked at, for example ``"PixelData"``.
    expected, got : object
        What a good file holds, and what this one holds.
    """

    def __init__(self, path: Path, field: str, expected: object, got: object) -> None:
        self.path = path
        self.field = field
        self.expected = expected
        self.got = got
        super().__init__(f"{named(path.name)}: {field}: expected {expected}, got {got}")


class IncompleteFile(VolumeError):  # noqa: N818 - a state of a file rather than a fault
    """The file is not complete yet: look again later."""


class SurplusSlice(VolumeError):  # noqa: N818 - a state of a file rather than a fault
    """The volume that a slice belongs to has it already: nothing is lost with it."""


class KeysError(RtdecodeError):
    """The file of keys cannot be read, written or used."""


class JournalError(RtdecodeError):
    """The journal cannot be read or written."""


class ProtocolError(RtdecodeError):
    """A message on the wire is malformed, too large or of an unknown kind, or a request cannot be met.

    Attributes
    ----------
    code : str
        What a client can act on: ``"late"``, ``"busy"``, ``"session"``, ``"role"``, ``"topic"`` or empty.
    """

    code = ""


class Late(ProtocolError):  # noqa: N818 - a state of a request rather than a fault
    """The client has given up the request."""

    code = "late"


class Busy(ProtocolError):  # noqa: N818 - a state rather than a fault
    """Not now: ask again."""

    code = "busy"


class AnotherSession(ProtocolError):  # noqa: N818 - a state of a request rather than a fault
    """It was meant for another session than this."""

    code = "session"


class Forbidden(ProtocolError):  # noqa: N818 - a state of a request rather than a fault
    """The client's key does not allow it."""

    code = "role"


class NoTopic(ProtocolError):  # noqa: N818 - a state of a request rather than a fault
    """Nothing is published under that name."""

    code = "topic"


class CalibrationError(RtdecodeError):
    """The calibration data cannot give a decoder."""


class TrainingError(RtdecodeError):
    """A training cannot go on, or cannot be resumed."""
