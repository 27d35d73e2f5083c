"""Targets: strings that name a store and, within it, a reference.

    ./dir  /dir  ~/dir  file:dir        a folder of model files
    oci:dir:tag  oci:dir@digest         an OCI image layout
    host/repository:tag                 a registry; `@digest` instead of, or after, the tag

The first component of a registry target is always its host: a private cloud has no default registry.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from tonnage.content.digest import Digest
from tonnage.errors import InvalidContent, InvalidReference

# OCI distribution-spec 1.1, "Pulling manifests"
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
MAX_REPOSITORY = 255


@dataclass(frozen=True)
class Folder:
    """A folder of model files."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Layout:
    """A reference in an OCI image layout; without `tag` and `digest`, the layout's only entry."""

    path: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def reference(self) -> str | None:
        """What to ask the store for: the digest if given, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return f"oci:{self.path}" + _suffix(self.tag, self.digest)


@dataclass(frozen=True)
class Repository:
    """A reference in a repository of a registry; without `tag` and `digest`, the tag `latest`."""

    host: str
    name: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def reference(self) -> str:
        """What to ask the registry for: the digest if given, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine, where plain HTTP is the default."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"{self.host}/{self.name}" + _suffix(self.tag, self.digest)


Target = Folder | Layout | Repository


def parse_target(text: str) -> Target:
    """Read a target string.

    Raises:
        InvalidReference: the text fits none of the forms.
    """
    if not text:
        raise InvalidReference("the target is empty", hint="name a folder, oci:DIR:TAG or HOST/REPOSITORY:TAG")
    if "\0" in text:
        raise InvalidReference(f"{text!r} has a zero byte, which no name can have")
    if text.startswith("oci:"):
        return _parse_layout(text)
    if text.startswith("file:"):
        return Folder(text.removeprefix("file:").removeprefix("//") or ".")
    if text in (".", "..") or text.startswith(("/", "./", "../", "~")):
        return Folder(text)
    if "://" in text:
        raise InvalidReference(f"{text!r} has a URL scheme", hint="write HOST/REPOSITORY:TAG, without the scheme")
    return parse_repository(text)


def parse_repository(text: str) -> Repository:
    """Read `host/repository[:tag][@digest]`.

    Raises:
        InvalidReference: it is not of that form.
    """
    rest, digest = _split_digest(text)
    host, slash, path = rest.partition("/")
    if not slash or not path:
        raise InvalidReference(
            f"{text!r} is not a registry reference", hint="write HOST/REPOSITORY:TAG, or ./DIR for a folder"
        )
    if not _is_host(host) or not (("." in host) or (":" in host) or host == "localhost"):
        raise InvalidReference(
            f"{text!r} names no registry host", hint=f"write HOST/{rest}, for example docker.io/{rest}"
        )
    name, colon, tag = path.partition(":")
    if colon and not TAG.fullmatch(tag):
        raise InvalidReference(
            f"{tag!r} in {text!r} is not a tag", hint="a tag has letters, digits, '.', '_' and '-', at most 128"
        )
    check_repository(name)
    return Repository(host, name, tag or None, digest)


def check_repository(name: str) -> None:
    """Check the name of a repository against the distribution specification.

    Raises:
        InvalidReference: it is not allowed.
    """
    if len(name) > MAX_REPOSITORY or not REPOSITORY.fullmatch(name):
        raise InvalidReference(
            f"{name[:300]!r} is not a repository name",
            hint="use lower-case letters and digits, with '.', '_', '-' or '/' between them",
        )


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    if not _HOST.fullmatch(text):
        return False
    try:
        parts = urlsplit(f"//{text}")
        if text.startswith("["):
            ipaddress.IPv6Address(parts.hostname or "")
        return parts.port != 0
    except ValueError:  # no such address, or a port above 65535
        return False


def _parse_layout(text: str) -> Layout:
    rest, digest = _split_digest(text.removeprefix("oci:"))
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, tag = rest, ""
    if not path:
        raise InvalidReference(f"{text!r} names no folder", hint="write oci:DIR:TAG")
    if tag and not TAG.fullmatch(tag):
        raise InvalidReference(f"{tag!r} in {text!r} is not a tag")
    return Layout(path, tag or None, digest)


def _split_digest(text: str) -> tuple[str, Digest | None]:
    rest, at, digest = text.rpartition("@")
    if not at:
        return text, None
    if ":" not in digest or "/" in digest:
        return text, None
    try:
        return rest, Digest(digest)
    except InvalidContent as error:
        raise InvalidReference(f"{digest!r} in {text!r} is not a digest", hint=error.hint) from error


def _suffix(tag: str | None, digest: Digest | None) -> str:
    return (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
