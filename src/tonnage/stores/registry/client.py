"""A repository of an OCI registry as a store (distribution-spec 1.1)."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence, Sized
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tonnage.content import manifest
from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import Digest
from tonnage.content.manifest import MAX_MANIFEST_SIZE, Index
from tonnage.content.mediatype import DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_INDEX, OCI_MANIFEST
from tonnage.content.reference import Repository
from tonnage.content.storage import Opener, Reader
from tonnage.content.verify import BytesReader, read_all
from tonnage.errors import (
    AccessDenied,
    DigestMismatch,
    IntegrityError,
    InvalidContent,
    NotFound,
    RangeNotServed,
    RegistryError,
    TooManyRequests,
    Unavailable,
)
from tonnage.stores.names import check_tag
from tonnage.stores.registry.auth import Authenticator, CredentialSource
from tonnage.stores.registry.kept import KeptManifests
from tonnage.stores.registry.transport import Body, Response, Timeouts, Transport, follow, host_of
from tonnage.stores.registry.upload import upload_blob

ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_MANIFEST))
MAX_ERROR = 64 << 10
"""Bytes of an error body worth reading."""

MAX_LIST = 8 << 20
"""Bytes of one page of tags."""

MAX_PAGES = 10_000
"""Pages of one list; a server that always names another would be asked forever."""

MAX_PAGED = 32 << 20
"""Bytes of all pages of one list, and of the addresses that they name."""

MAX_ENTRIES = 200_000
"""Tags or referrers in one list; short ones take far more memory than they took bytes on the way."""

MAX_KEPT = 16 << 20
"""Bytes of manifests that a store keeps."""

_DOCKER_HUB = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


class RegistryStore:
    """One repository of one registry. Safe for several threads.

    Args:
        repository: which.
        plain_http: whether to speak HTTP without TLS; by default only to this machine.
        credentials: where to look for a user name and password; by default there is none.
        timeouts: limits on waiting.
        tls: certificates to trust; the system's by default.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        plain_http: bool | None = None,
        credentials: CredentialSource | None = None,
        timeouts: Timeouts | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.repository = repository
        plain = repository.is_loopback if plain_http is None else plain_http
        host = _DOCKER_HUB.get(repository.host, repository.host)
        self._url = f"{'http' if plain else 'https'}://{host}/v2/{repository.name}"
        self._transport = Transport(timeouts=timeouts, tls=tls)
        self._auth = Authenticator(repository.host, self._transport, credentials or (lambda _: None), plain_http=plain)
        # A pull reads a manifest more than once; the registry is asked once.
        self._manifests = KeptManifests(MAX_KEPT)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    # --- reading

    def fetch(self, node: Descriptor) -> Reader:
        """See `Fetcher.fetch`."""
        kept = self._manifests.get(node.digest)
        if kept is not None:
            return BytesReader(kept)
        response = self._call("GET", self._node_url(node), expect=(200,), headers=_accept(node))
        return self._sized(response, node, node.size)

    def fetch_range(self, node: Descriptor, offset: int, length: int) -> Reader:
        """See `RangeFetcher.fetch_range`."""
        if not length:
            return BytesReader(b"")
        last = offset + length - 1
        headers = {**_accept(node), "Range": f"bytes={offset}-{last}"}
        response = self._call("GET", self._node_url(node), expect=(200, 206), headers=headers)
        if response.status == 200 and (offset, length) == (0, node.size):
            return self._sized(response, node, length)
        # A 200 in place of a 206 is the whole blob: taken for the range, it would corrupt the file.
        if response.status != 206 or response.headers.get("Content-Range") != f"bytes {offset}-{last}/{node.size}":
            response.close()
            raise RangeNotServed(f"{self.repository.host} does not serve the range {offset}-{last} of {node.digest}")
        return self._sized(response, node, length)

    def resolve(self, reference: str) -> Descriptor:
        """See `Resolver.resolve`."""
        named = Digest(reference) if ":" in reference else None
        response = self._call("GET", self._manifest_url(reference), expect=(200,), headers={"Accept": ACCEPT})
        raw = response.read(MAX_MANIFEST_SIZE + 1)
        # Caps the size too; and the type must be one we read.
        document = manifest.parse(raw, response.headers.get("Content-Type", "").partition(";")[0].strip())
        wanted = named or response.headers.get("Docker-Content-Digest") or ""
        digest = Digest.of(raw, named.algorithm if named else "sha256")
        if wanted.startswith(f"{digest.algorithm}:") and wanted != digest:
            raise DigestMismatch(
                f"{self.repository.host} sent a manifest that hashes to {digest} for {wanted}",
                hint="its copy is damaged, or something on the way changes what it sends",
            )
        self._manifests.keep(digest, raw)
        return Descriptor(
            media_type=document.media_type, digest=digest, size=len(raw), artifact_type=document.artifact_type
        )

    def tags(self) -> Sequence[str]:
        """See `TagLister.tags`."""
        found: set[str] = set()
        for raw in self._pages(f"{self._url}/tags/list", MAX_LIST):
            try:
                found.update(msgspec.json.decode(raw, type=_Tags).tags or [])
            except (ValueError, RecursionError) as error:
                raise InvalidContent(f"{self.repository.host} sent a malformed list of tags: {error}") from error
            self._check_entries(found)
        return sorted(found)

    def referrers(self, node: Descriptor, artifact_type: str | None = None) -> Sequence[Descriptor]:
        """See `ReferrerLister.referrers`; uses the tag scheme where the registry has no referrers API."""
        found: list[Descriptor] = []
        for page in self._referrer_pages(node, artifact_type):
            found += [entry for entry in page.manifests if artifact_type in (None, entry.artifact_type)]
            self._check_entries(found)
        return found

    # --- writing

    def exists(self, node: Descriptor) -> bool:
        """See `Pusher.exists`."""
        try:
            response = self._call("HEAD", self._node_url(node), expect=(200,), headers=_accept(node))
        except NotFound:
            return False
        response.close()
        size = response.headers.get("Content-Length")
        return size is None or size == str(node.size)

    def push(self, node: Descriptor, open: Opener) -> None:
        """See `Pusher.push`; the registry verifies what it receives."""
        if not node.is_manifest:
            upload_blob(self._call, self._url, node, open)
            return
        raw = read_all(open(0), node, limit=MAX_MANIFEST_SIZE)
        self._manifests.keep(node.digest, raw)
        self._put_manifest(node.digest, node, raw)

    def tag(self, node: Descriptor, reference: str) -> None:
        """See `Tagger.tag`."""
        check_tag(reference)
        raw = read_all(self.fetch(node), node, limit=MAX_MANIFEST_SIZE)
        self._put_manifest(reference, node, raw)

    def delete(self, node: Descriptor) -> None:
        """See `Deleter.delete`."""
        self._manifests.forget(node.digest)
        self._call("DELETE", self._node_url(node), expect=(200, 202)).close()

    # --- requests

    def _call(
        self,
        method: str,
        url: str,
        *,
        expect: tuple[int, ...],
        headers: dict[str, str] | None = None,
        body: bytes | Body | None = None,
    ) -> Response:
        """Send a request with what authorisation it needs.

        Raises:
            TonnageError: the one that fits the status, if it is none of `expect`.
        """
        actions = "pull" if method in ("GET", "HEAD") else "pull,push" if method != "DELETE" else "delete"
        scope = f"repository:{self.repository.name}:{actions}"
        # An upload URL on another host, such as a bucket, is signed already.
        own = url.startswith(self._url.partition("/v2/")[0] + "/")
        authorization = self._auth.header(scope) if own else None
        for attempt in range(2):
            sent = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
            response = self._transport.request(method, url, headers=sent, body=body)
            if response.status != 401 or not own or attempt:
                break
            challenge = ", ".join(response.headers.get_all("WWW-Authenticate", []))
            response.close()
            authorization = self._auth.answer(challenge, scope, rejected=authorization)
        if response.status not in expect:
            raise self._error(method, url, response, login=authorization is not None)
        return response

    def _error(self, method: str, url: str, response: Response, *, login: bool) -> Exception:
        body = response.read(MAX_ERROR)
        codes, message = _error_body(body)
        status, host = response.status, self.repository.host
        said = f": {message}" if message else ""
        what = self._what(url)
        if status == 401:
            does = "refused the login" if login else "wants a login"
            return AccessDenied(f"{host} {does} (HTTP 401){said}", hint=f"docker login {host}")
        if status == 403:
            return AccessDenied(
                f"{host} does not allow {method} of {self.repository.name} (HTTP 403){said}",
                hint="check that the account may do this",
            )
        if status == 404:
            return NotFound(f"{host} does not have {what}", hint="check the repository and the tag")
        if status == 429:
            after = response.headers.get("Retry-After", "")
            return TooManyRequests(
                f"{host} asks us to slow down (HTTP 429){said}",
                hint="try again later",
                retry_after=_seconds(after, response.headers.get("Date", "")),
            )
        # To send a layer to a full registry (507) again would not make room for it.
        if status == 408 or (status >= 500 and status != 507):
            return Unavailable(f"{host} failed on {method} {what} (HTTP {status}){said}", hint="try again later")
        hint = "free space on the registry" if status == 507 else "ask who runs the registry"
        if b"HTTPS" in body and url.startswith("http:"):
            # What Go's and nginx' servers answer to plain HTTP.
            hint = "say --tls"
        return RegistryError(
            f"{host} refused {method} {what} (HTTP {status}){said}",
            hint=hint,
            status=status,
            codes=codes,
        )

    def _put_manifest(self, reference: str, node: Descriptor, raw: bytes) -> None:
        self._call(
            "PUT",
            self._manifest_url(reference),
            expect=(201,),
            headers={"Content-Type": node.media_type},
            body=raw,
        ).close()

    def _referrer_pages(self, node: Descriptor, artifact_type: str | None) -> Iterator[Index]:
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        try:
            for raw in self._pages(f"{self._url}/referrers/{node.digest}{query}", MAX_MANIFEST_SIZE + 1):
                yield _as_index(raw)
        except NotFound:
            # distribution-spec, "Unavailable Referrers API"
            try:
                fallback = self.resolve(f"{node.digest.algorithm}-{node.digest.hex}")
            except NotFound:
                return
            yield _as_index(read_all(self.fetch(fallback), fallback, limit=MAX_MANIFEST_SIZE))

    def _pages(self, first: str, limit: int) -> Iterator[bytes]:
        """The bodies of a list that comes in pages, each named by the one before."""
        url: str | None = first
        seen: set[str] = set()
        room = MAX_PAGED
        while url and url not in seen:
            if len(seen) == MAX_PAGES:
                raise InvalidContent(f"{self.repository.host} sends a list of more than {MAX_PAGES} pages")
            seen.add(url)
            response = self._call("GET", url, expect=(200,), headers={"Accept": f"{OCI_INDEX}, application/json"})
            raw = response.read(limit)
            room -= len(raw) + len(url)
            if room < 0:
                raise InvalidContent(f"{self.repository.host} sends a list of more than {MAX_PAGED} bytes")
            yield raw
            url = _next_page(response)

    def _check_entries(self, found: Sized) -> None:
        if len(found) > MAX_ENTRIES:
            raise InvalidContent(f"{self.repository.host} sends a list of more than {MAX_ENTRIES} entries")

    def _what(self, url: str) -> str:
        """What a URL names, to tell the user: its path only, since the query of an upload's or a bucket's URL is a
        secret that lets whoever reads the log do the same."""
        own = url == self._url or url.startswith(f"{self._url}/")
        return urlsplit(url).path.removeprefix("/v2/") if own else self.repository.host

    def _manifest_url(self, reference: str) -> str:
        return f"{self._url}/manifests/{quote(reference, safe=':')}"

    def _node_url(self, node: Descriptor) -> str:
        return self._manifest_url(node.digest) if node.is_manifest else f"{self._url}/blobs/{node.digest}"

    def _sized(self, response: Response, node: Descriptor, length: int) -> Reader:
        """The response, if it promises the length that it must have."""
        if response.length not in (None, length):
            response.close()
            raise IntegrityError(
                f"{self.repository.host} sends {response.length} bytes for {node.digest}, which has {length}",
                hint="its copy is damaged, or something on the way changes what it sends",
            )
        return response


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class _Problem(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Problems(msgspec.Struct):
    errors: list[_Problem] = []


def _error_body(raw: bytes) -> tuple[tuple[str, ...], str]:
    """The codes and the first message of an OCI error body (distribution-spec, "Error Codes")."""
    try:
        problems = msgspec.json.decode(raw, type=_Problems).errors
    except (ValueError, RecursionError):
        return (), ""
    if not problems:
        return (), ""
    text = " ".join(problems[0].message.split())
    return tuple(problem.code for problem in problems), f"{problems[0].code} {text}"[:300].strip()


def _seconds(retry_after: str, date: str) -> float | None:
    """What a `Retry-After` asks for: seconds, or the time between the server's own date and another."""
    if re.fullmatch(r"[0-9]{1,9}", retry_after):
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - parsedate_to_datetime(date)).total_seconds())
    except (ValueError, TypeError):
        return None


def _accept(node: Descriptor) -> dict[str, str]:
    return {"Accept": node.media_type} if node.is_manifest else {}


def _as_index(raw: bytes) -> Index:
    document = manifest.parse(raw, OCI_INDEX)
    if not isinstance(document, Index):
        raise InvalidContent("the list of referrers is not an index")
    return document


def _next_page(response: Response) -> str | None:
    match = re.search(r"<([^>]+)>\s*;[^,]*rel=\"?next", response.headers.get("Link", ""))
    if not match:
        return None
    target = follow(response.url, match[1])
    return target if host_of(target) == host_of(response.url) else None
