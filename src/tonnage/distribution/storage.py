"""What the registry keeps on disk, and the rules that keep it whole.

    ROOT/lock                                         held by the one process that writes here
    ROOT/blobs/ALGORITHM/HEX                          content, shared by all repositories
    ROOT/uploads/ID-REPOSITORYHASH                    what is arriving; every temporary file is here
    ROOT/repositories/NAME/_blobs/ALGORITHM/HEX       empty: this repository has that blob
    ROOT/repositories/NAME/_manifests/ALGORITHM/HEX   the manifest's media type; its bytes are in blobs/
    ROOT/repositories/NAME/_tags/TAG                  the digest that the tag names
    ROOT/repositories/NAME/_referrers/ALGORITHM/HEX/ALGORITHM-HEX   descriptor of a manifest whose subject is that

A path component of a repository cannot start with `_`, so names and folders of ours never meet. Every name is checked
here, where it becomes a path: whatever route it came by, `..` cannot pass.

Content appears by rename, after it was verified and synced, so a reader sees all of a file or none of it, also after
a power cut: a client that was told 201 will not send those bytes again. One lock orders every change of a link with the
search for other links, so a blob is deleted only when no repository has it, and never under a mount or a commit.
Content on disk without a link, which only a crash leaves, is removed by `sweep`.

All methods block; the services call them in threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tonnage.content.descriptor import Descriptor
from tonnage.content.digest import HEX_LENGTH, Digest
from tonnage.content.manifest import Index, Manifest, parse, referrer
from tonnage.content.reference import TAG, check_repository
from tonnage.distribution.errors import Refusal, local_errors
from tonnage.errors import InvalidContent, LocalError

_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Content that a repository has.

    Args:
        digest: its digest.
        media_type: its type; of a blob, `application/octet-stream`.
        path: where its bytes are.
        size: bytes.
    """

    digest: Digest
    media_type: str
    path: Path
    size: int


class Storage:
    """The folder of a registry.

    Args:
        root: the folder; made by `open` if it is not there.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._uploads = root / "uploads"
        self._repositories = root / "repositories"
        self._changing = threading.Lock()
        self._lock_file: int | None = None

    def open(self) -> None:
        """Make the folder, and be its only writer until `close`.

        Raises:
            LocalError: it cannot be made, holds something else, or another process serves it.
        """
        with local_errors(f"use {self._root} as a registry"):
            if self._root.exists() and not (self._root / "blobs").exists() and any(self._strangers()):
                raise LocalError(f"{self._root} is not empty, and not a registry", hint="name an empty or new folder")
            for algorithm in HEX_LENGTH:
                (self._root / "blobs" / algorithm).mkdir(parents=True, exist_ok=True)
            self._uploads.mkdir(exist_ok=True)
            self._repositories.mkdir(exist_ok=True)
            self._lock_file = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise LocalError(
                f"another registry serves {self._root}", hint="stop it, or start this one read-only"
            ) from error

    def _strangers(self) -> Iterator[Path]:
        return (path for path in self._root.iterdir() if path.name != "lost+found")

    def close(self) -> None:
        """Let another process write."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    # Blobs

    def blob(self, repository: str, digest: Digest) -> Stored:
        """A blob of a repository.

        Raises:
            Refusal: BLOB_UNKNOWN.
        """
        if self._blob_link(repository, digest).exists():
            with suppress(FileNotFoundError):
                return self._stored(digest, "application/octet-stream")
        raise Refusal("BLOB_UNKNOWN", f"{repository} has no blob {digest}", detail={"digest": digest})

    def commit(self, upload: Path, repository: str, digest: Digest) -> None:
        """Let a finished upload, whose bytes are verified, be a blob of a repository; `upload` is gone afterwards."""
        with local_errors(f"store blob {digest}"):
            _sync(upload)
            with self._changing:
                self._reveal(upload, digest)
                self._write_link(self._blob_link(repository, digest))

    def mount(self, repository: str, digest: Digest, source: str) -> bool:
        """Give a repository a blob that the repository `source` has; whether there was one."""
        with self._changing, local_errors(f"mount blob {digest}"):
            if not (self._blob_link(source, digest).exists() and self._content(digest).exists()):
                return False
            self._write_link(self._blob_link(repository, digest))
            return True

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """Take a blob from a repository.

        Raises:
            Refusal: BLOB_UNKNOWN.
        """
        with self._changing, local_errors(f"delete blob {digest}"):
            try:
                self._blob_link(repository, digest).unlink()
            except FileNotFoundError:
                raise Refusal("BLOB_UNKNOWN", f"{repository} has no blob {digest}") from None
            self._forget(digest)

    # Manifests

    def manifest(self, repository: str, reference: str) -> Stored:
        """The manifest that a tag or digest names.

        Raises:
            Refusal: MANIFEST_UNKNOWN.
        """
        digest = self._resolve(repository, reference)
        with suppress(FileNotFoundError):
            return self._stored(digest, self._manifest_link(repository, digest).read_text())
        raise _manifest_unknown(repository, reference)

    def put_manifest(self, repository: str, document: Manifest | Index, digest: Digest, tags: Sequence[str]) -> None:
        """Store a manifest whose bytes have this digest, and let the tags name it.

        Raises:
            Refusal: MANIFEST_BLOB_UNKNOWN, when something it needs is not in the repository; MANIFEST_INVALID, when
                a tag is not one.
        """
        names = [self._tag(repository, tag) for tag in tags]
        with self._changing, local_errors(f"store manifest {digest}"):
            self._require_children(repository, document)
            self._reveal(self._temporary(document.raw), digest)
            if document.subject is not None:
                entry = self._referrer_entry(repository, document.subject.digest, digest)
                self._write(entry, msgspec.json.encode(referrer_of(document, digest).to_dict()))
            self._write(self._manifest_link(repository, digest), document.media_type.encode())
            for name in names:
                self._write(name, digest.encode())

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        """Take a manifest from a repository, and with it its tags and its entry among the referrers of its subject.

        Raises:
            Refusal: MANIFEST_UNKNOWN.
        """
        with self._changing, local_errors(f"delete manifest {digest}"):
            stored = self.manifest(repository, digest)
            subject = parse(stored.path.read_bytes(), stored.media_type).subject
            for tag in self._tags(repository):
                if self._named(repository, tag) == digest:
                    self._tag(repository, tag).unlink(missing_ok=True)
            self._manifest_link(repository, digest).unlink(missing_ok=True)
            if subject is not None:
                self._referrer_entry(repository, subject.digest, digest).unlink(missing_ok=True)
            self._forget(digest)

    def delete_tag(self, repository: str, tag: str) -> None:
        """Take a name from a manifest, which stays.

        Raises:
            Refusal: MANIFEST_UNKNOWN.
        """
        with self._changing, local_errors(f"delete tag {tag}"):
            self._resolve(repository, tag)
            self._tag(repository, tag).unlink(missing_ok=True)

    # Lists

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, sorted.

        Raises:
            Refusal: NAME_UNKNOWN.
        """
        folder = self._folder(repository)
        if not ((folder / "_manifests").exists() or (folder / "_blobs").exists()):
            raise Refusal("NAME_UNKNOWN", f"there is no repository {repository}", detail={"name": repository})
        return self._tags(repository)

    def repositories(self) -> list[str]:
        """The names of all repositories that hold a manifest, sorted."""
        return sorted(name for name in self._names() if any(_links(self._folder(name) / "_manifests")))

    def referrers(self, repository: str, digest: Digest) -> list[Descriptor]:
        """Descriptors of the manifests whose subject this is, sorted by digest; none if it is unknown."""
        folder = self._folder(repository) / "_referrers" / digest.algorithm / digest.hex
        found = []
        for path in sorted(_entries(folder)):
            with suppress(FileNotFoundError):
                found.append(Descriptor.from_dict(msgspec.json.decode(path.read_bytes()), "referrer"))
        return found

    # Uploads

    def new_upload(self, repository: str) -> tuple[str, Path]:
        """The id and the file of a new upload to a repository."""
        upload = secrets.token_hex(16)
        path = self.upload(repository, upload)
        with local_errors("start an upload"):
            path.touch(exist_ok=False)
        return upload, path

    def upload(self, repository: str, upload: str) -> Path:
        """The file of an upload, there or not; its name is bound to the repository, so elsewhere the id is unknown.

        Raises:
            Refusal: BLOB_UPLOAD_UNKNOWN, when it is not an id of ours.
        """
        check_repository(repository)
        if not _UPLOAD_ID.fullmatch(upload):
            raise Refusal("BLOB_UPLOAD_UNKNOWN", f"{upload[:100]!r} is not an upload")
        return self._uploads / f"{upload}-{hashlib.sha256(repository.encode()).hexdigest()[:16]}"

    def old_uploads(self, before: float) -> list[Path]:
        """Files of uploads that last grew before a moment, in seconds of the epoch."""
        found = []
        for path in _entries(self._uploads):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    found.append(path)
        return found

    def sweep(self) -> list[Digest]:
        """Remove content that no repository has; returns what it was."""
        with self._changing, local_errors("sweep"):
            linked = {digest for name in self._names() for digest in self._linked(name)}
            loose = [digest for digest in _links(self._root / "blobs") if digest not in linked]
            for digest in loose:
                self._content(digest).unlink(missing_ok=True)
            return loose

    # Paths: every name from outside is checked before it becomes one

    def _content(self, digest: Digest) -> Path:
        return self._root / "blobs" / digest.algorithm / digest.hex

    def _folder(self, repository: str) -> Path:
        check_repository(repository)
        return self._repositories / repository

    def _blob_link(self, repository: str, digest: Digest) -> Path:
        return self._folder(repository) / "_blobs" / digest.algorithm / digest.hex

    def _manifest_link(self, repository: str, digest: Digest) -> Path:
        return self._folder(repository) / "_manifests" / digest.algorithm / digest.hex

    def _referrer_entry(self, repository: str, subject: Digest, digest: Digest) -> Path:
        folder = self._folder(repository) / "_referrers" / subject.algorithm / subject.hex
        return folder / f"{digest.algorithm}-{digest.hex}"

    def _tag(self, repository: str, tag: str) -> Path:
        if not TAG.fullmatch(tag):
            raise Refusal("MANIFEST_INVALID", f"{tag[:200]!r} is not a tag", detail={"tag": tag[:200]})
        return self._folder(repository) / "_tags" / tag

    # Reading

    def _stored(self, digest: Digest, media_type: str) -> Stored:
        path = self._content(digest)
        return Stored(digest=digest, media_type=media_type, path=path, size=path.stat().st_size)

    def _resolve(self, repository: str, reference: str) -> Digest:
        self._folder(repository)
        if ":" in reference:
            return digest_of(reference)
        named = self._named(repository, reference) if TAG.fullmatch(reference) else None
        if named is None:
            raise _manifest_unknown(repository, reference)
        return named

    def _named(self, repository: str, tag: str) -> Digest | None:
        try:
            return Digest(self._tag(repository, tag).read_text())
        except FileNotFoundError:
            return None

    def _tags(self, repository: str) -> list[str]:
        return sorted(path.name for path in _entries(self._folder(repository) / "_tags"))

    def _names(self) -> Iterator[str]:
        for folder, below, _ in os.walk(self._repositories):
            if any(name.startswith("_") for name in below):
                yield Path(folder).relative_to(self._repositories).as_posix()
            below[:] = [name for name in below if not name.startswith("_")]

    def _linked(self, repository: str) -> Iterator[Digest]:
        yield from _links(self._folder(repository) / "_blobs")
        yield from _links(self._folder(repository) / "_manifests")

    def _require_children(self, repository: str, document: Manifest | Index) -> None:
        missing = [child for child in document.children if not self._has(repository, document, child)]
        if missing:
            raise Refusal(
                "MANIFEST_BLOB_UNKNOWN",
                f"{repository} lacks {len(missing)} of what the manifest names, first {missing[0].digest}",
                detail=[child.to_dict() for child in missing[:100]],
            )

    def _has(self, repository: str, document: Manifest | Index, child: Descriptor) -> bool:
        if isinstance(document, Index) and child.is_manifest:
            link = self._manifest_link(repository, child.digest)
        else:
            link = self._blob_link(repository, child.digest)
        # A layer with urls is not distributable (image-spec, "Non-Distributable Layers"): it lives elsewhere.
        return "urls" in child.extra or (link.exists() and self._content(child.digest).exists())

    # Writing

    def _reveal(self, verified: Path, digest: Digest) -> None:
        # Also over content that is there: the same bytes, and it mends a file that the disk has damaged.
        verified.replace(self._content(digest))
        _sync(self._content(digest).parent)

    def _temporary(self, data: bytes) -> Path:
        path = self._uploads / secrets.token_hex(16)
        try:
            path.write_bytes(data)
            _sync(path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def _write(self, path: Path, data: bytes) -> None:
        temporary = self._temporary(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
        _sync(path.parent)

    def _write_link(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _sync(path.parent)

    def _forget(self, digest: Digest) -> None:
        for name in self._names():
            if self._blob_link(name, digest).exists() or self._manifest_link(name, digest).exists():
                return
        self._content(digest).unlink(missing_ok=True)


def digest_of(text: str) -> Digest:
    """Read a digest that a client sent.

    Raises:
        Refusal: DIGEST_INVALID.
    """
    try:
        return Digest(text)
    except InvalidContent as error:
        raise Refusal("DIGEST_INVALID", str(error)) from error


def referrer_of(document: Manifest | Index, digest: Digest) -> Descriptor:
    """The entry of a referrers list, under the digest that the manifest was pushed by."""
    return replace(referrer(document), digest=digest)


def _manifest_unknown(repository: str, reference: str) -> Refusal:
    message = f"{repository} has no manifest {reference[:200]!r}"
    return Refusal("MANIFEST_UNKNOWN", message, detail={"reference": reference[:200]})


def _entries(folder: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from folder.iterdir()


def _links(folder: Path) -> Iterator[Digest]:
    for algorithm in _entries(folder):
        for path in _entries(algorithm):
            with suppress(InvalidContent):
                yield Digest(f"{algorithm.name}:{path.name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
