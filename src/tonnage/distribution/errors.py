"""What the registry answers when it refuses: the OCI error body, and one mapping from our errors to the OCI codes.

Handlers and storage raise; the middleware of `app` turns what they raise into a response, so no handler builds an
error response of its own and a client always finds the same JSON. What is not ours (a bug) becomes a 500 that says
nothing of the inside; the log has the traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from aiohttp import web

from tonnage.errors import (
    DigestMismatch,
    InvalidContent,
    InvalidReference,
    LocalError,
    NotFound,
    StorageFull,
    TonnageError,
)

# OCI distribution-spec 1.1, "Error Codes"; the last four are those of distribution, and of us.
STATUS = {
    "BLOB_UNKNOWN": 404,
    "BLOB_UPLOAD_INVALID": 400,
    "BLOB_UPLOAD_UNKNOWN": 404,
    "DIGEST_INVALID": 400,
    "MANIFEST_BLOB_UNKNOWN": 404,
    "MANIFEST_INVALID": 400,
    "MANIFEST_UNKNOWN": 404,
    "NAME_INVALID": 400,
    "NAME_UNKNOWN": 404,
    "SIZE_INVALID": 400,
    "UNSUPPORTED": 405,
    "PAGINATION_NUMBER_INVALID": 400,
    "RANGE_INVALID": 416,
    "STORAGE_FULL": 507,
    "UNKNOWN": 500,
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Refusal(TonnageError):
    """A request that the registry refuses.

    Args:
        code: the OCI error code, a key of `STATUS`.
        message: what is wrong, in one line.
        status: the HTTP status, when it is not the usual one of the code.
        detail: JSON that helps a program: which digests are missing, how much has arrived.
        headers: headers that the specification asks for in this refusal.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 0,
        detail: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status or STATUS[code]
        self.detail = detail
        self.headers = headers or {}


class Disconnected(TonnageError):
    """The client went away in the middle of a request body; what had arrived is kept."""


def refusal(error: TonnageError) -> Refusal:
    """The refusal that says what `error` says; the first class that fits decides."""
    if isinstance(error, Refusal):
        return error
    for kind, code in _CODES:
        if isinstance(error, kind):
            return Refusal(code, str(error))
    return Refusal("UNKNOWN", "the registry failed; its log says more")


def response(error: Refusal) -> web.Response:
    """The OCI error body (distribution-spec, "Error Codes")."""
    body = {"errors": [{"code": error.code, "message": error.message, "detail": error.detail}]}
    return web.Response(
        status=error.status,
        headers=error.headers,
        body=msgspec.json.encode(body, enc_hook=str),
        content_type="application/json",
    )


def require_identity(request: web.Request) -> None:
    """Refuse a body that aiohttp would decode on the way: digests are over the bytes as they are.

    Raises:
        Refusal: UNSUPPORTED.
    """
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Refusal("UNSUPPORTED", "send the content as it is, without a content encoding", status=415)


@contextmanager
def local_errors(what: str) -> Iterator[None]:
    """Translate the operating system's errors while doing `what`.

    Raises:
        StorageFull: no space, over a quota, or over the file system's limit for one file.
        LocalError: anything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"the registry's disk is full: cannot {what}") from error
        raise LocalError(f"cannot {what}: {error.strerror}") from error


_CODES: tuple[tuple[type[TonnageError], str], ...] = (
    (InvalidReference, "NAME_INVALID"),
    (StorageFull, "STORAGE_FULL"),
    (DigestMismatch, "DIGEST_INVALID"),
    (InvalidContent, "MANIFEST_INVALID"),
    (NotFound, "NAME_UNKNOWN"),
    (Disconnected, "BLOB_UPLOAD_INVALID"),
)
