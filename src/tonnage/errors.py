"""Every error that Tonnage raises on purpose.

Catch `TonnageError` for all of them; the message is one line for the user: what happened, to what, and what to do.

    TonnageError                 exit code 1
    |- UsageError                2   the command or its options are wrong
    |  |- InvalidReference           a target string cannot be read
    |  '- InvalidComposition         a server was built from options that do not go together
    |- LocalError                3   a local file or folder cannot be read or written
    |  |- SourceChanged              a file changed while it was being read
    |  |- StorageFull                no space left (or quota exceeded)
    |  '- TargetOccupied             the folder holds something that is not ours to overwrite
    |- NotFound                  4   the tag, manifest, blob or repository does not exist
    |- AccessDenied              5   the registry refused our credentials, or wants some
    |- Unavailable               6   no connection, a time-out, or the server failed (worth a retry)
    |  |- Unreachable                no connection could be made
    |  |- Truncated                  the stream ended before its declared size
    |  |- RangeNotServed             the server does not send the range that was asked for
    |  '- TooManyRequests            the server asked us to slow down
    |- IntegrityError            7   bytes are not the bytes that were promised
    |  |- DigestMismatch
    |  '- SizeMismatch
    |- InvalidContent            8   a manifest or archive is malformed, unsafe or over a limit
    |  '- UnsafeArchive
    |- RegistryError             9   the registry refused a request for a reason of its own
    '- EngineError               10  the inference engine failed

Foreign errors (OSError, http.client, aiohttp, msgspec) are translated at the seam where they appear, always with
`raise ... from`. Errors that cross `transfer.copy` carry `side`: which of the two stores failed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Side = Literal["source", "target"]


class TonnageError(Exception):
    """Base of all errors raised on purpose; `str()` of it is fit to show a user.

    Args:
        message: what happened and to what, without a final full stop.
        hint: what the user can do about it, as one clause; empty when the message says it.
    """

    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.side: Side | None = None

    def __str__(self) -> str:
        where = f"{self.side}: " if self.side else ""
        return f"{where}{self.message}" + (f"; {self.hint}" if self.hint else "")


class UsageError(TonnageError):
    """The command or its options are wrong."""

    exit_code = 2


class InvalidReference(UsageError):
    """A target string cannot be read as a folder, a layout or a registry reference."""


class InvalidComposition(UsageError):
    """A server was built from options that do not go together."""


class LocalError(TonnageError):
    """A local file or folder cannot be read or written."""

    exit_code = 3

    @classmethod
    @contextmanager
    def translated(cls, action: str, path: object) -> Iterator[None]:
        """Turns an `OSError` of the block into the error that `from_os` makes of it."""
        try:
            yield
        except OSError as error:
            raise cls.from_os(error, action, path) from error

    @classmethod
    def from_os(cls, error: OSError, action: str, path: object) -> LocalError:
        """The error for a failed system call.

        Args:
            error: what the operating system said.
            action: what was tried, as in "cannot ACTION PATH".
            path: what it was tried on.
        """
        message = f"cannot {action} {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFull(message, hint="free some space and run the command again; it goes on where it stopped")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return cls(message, hint="check who owns it and its permissions")
        if error.errno == errno.ENOENT:
            return cls(message, hint="check the path")
        return cls(message)


class SourceChanged(LocalError):
    """A file changed between being measured and being sent."""


class StorageFull(LocalError):
    """The disk is full, or a quota was reached."""


class TargetOccupied(LocalError):
    """The target folder holds something that a pull must not overwrite."""


class NotFound(TonnageError):
    """The named content does not exist in the store."""

    exit_code = 4


class AccessDenied(TonnageError):
    """The store refused our credentials, or wants some."""

    exit_code = 5


class Unavailable(TonnageError):
    """The store cannot be reached or failed on its side; trying again may help."""

    exit_code = 6
    retryable = True


class Unreachable(Unavailable):
    """No connection could be made: nobody listens there, or the name is unknown."""


class Truncated(Unavailable):
    """A stream ended before its declared size."""


class RangeNotServed(Unavailable):
    """The server sends something other than the range that was asked for, such as the whole content."""


class TooManyRequests(Unavailable):
    """The server asked us to slow down.

    Args:
        retry_after: seconds the server asked us to wait, if it said so.
    """

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class IntegrityError(TonnageError):
    """Bytes are not the bytes that were promised."""

    exit_code = 7


class DigestMismatch(IntegrityError):
    """Content hashes to something other than its digest."""


class SizeMismatch(IntegrityError):
    """Content is longer or shorter than its descriptor says."""


class InvalidContent(TonnageError):
    """A manifest or archive is malformed, unsafe or over a limit."""

    exit_code = 8


class UnsafeArchive(InvalidContent):
    """An archive entry would write outside its folder, or is not a plain file or folder."""


class RegistryError(TonnageError):
    """The registry refused a request for a reason of its own.

    Args:
        status: the HTTP status.
        codes: the OCI error codes of the body, such as `DIGEST_INVALID`.
    """

    exit_code = 9

    def __init__(self, message: str, *, hint: str = "", status: int = 0, codes: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.codes = codes


class EngineError(TonnageError):
    """The inference engine could not start, stopped, or does not answer."""

    exit_code = 10
