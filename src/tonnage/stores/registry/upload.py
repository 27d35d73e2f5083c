"""Uploading a blob: a session is opened, and the whole blob is put into it in one request.

The monolithic way (distribution-spec, "Pushing a blob monolithically") is the one that every registry takes.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import quote

from tonnage.content.descriptor import Descriptor
from tonnage.content.storage import Opener
from tonnage.errors import IntegrityError, RegistryError
from tonnage.stores.registry.transport import Body, Response, follow


class Call(Protocol):
    """Sends an authorised request of one repository, and checks its status."""

    def __call__(
        self,
        method: str,
        url: str,
        *,
        expect: tuple[int, ...],
        headers: dict[str, str] | None = None,
        body: bytes | Body | None = None,
    ) -> Response:
        """See `RegistryStore`."""
        ...


def upload_blob(call: Call, repository_url: str, node: Descriptor, open: Opener) -> None:
    """Upload a blob, reading it from `open(0)`.

    Args:
        call: sends requests.
        repository_url: `https://host/v2/name`.
        node: the blob.
        open: its content.

    Raises:
        IntegrityError: the registry found that the bytes are not what `node` says.
    """
    response = call("POST", f"{repository_url}/blobs/uploads/", expect=(202,))
    response.close()
    location = response.headers.get("Location")
    if not location:
        raise RegistryError("the registry opened an upload without saying where", hint="ask who runs it")
    url = follow(response.url, location)
    url += ("&" if "?" in url else "?") + f"digest={quote(node.digest)}"
    try:
        call(
            "PUT",
            url,
            expect=(201,),
            headers={"Content-Type": "application/octet-stream"},
            body=Body(open=open, size=node.size),
        ).close()
    except RegistryError as error:
        if "DIGEST_INVALID" in error.codes or "SIZE_INVALID" in error.codes:
            raise IntegrityError(
                f"the registry received other bytes than {node.digest}", hint="the source is damaged, or changed"
            ) from error
        raise
