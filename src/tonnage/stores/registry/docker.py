"""The credentials that `docker login` has stored: in `config.json`, or with a credential helper that it names.

Source: docker/cli, "docker login", "Credential stores", and docker/docker-credential-helpers, README.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from pathlib import Path

import msgspec

from tonnage.errors import AccessDenied, InvalidContent, LocalError
from tonnage.stores.registry.auth import Credentials, CredentialSource

HELPER_TIMEOUT = 60.0
"""Seconds; a helper may ask a cloud, or the user."""

_HELPER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]*")
_DOCKER_HUB = "https://index.docker.io/v1/"
"""The one name that Docker Hub's credentials are stored under."""


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"_Auth({self.username!r})"


class _DockerConfig(msgspec.Struct):
    auths: dict[str, _Auth] = {}
    store: str = msgspec.field(name="credsStore", default="")
    helpers: dict[str, str] = msgspec.field(name="credHelpers", default_factory=dict)


class _Answer(msgspec.Struct):
    username: str = msgspec.field(name="Username")
    secret: str = msgspec.field(name="Secret")

    def __repr__(self) -> str:
        return f"_Answer({self.username!r})"


def docker_config(path: Path | None = None) -> CredentialSource:
    """Credentials that `docker login` has stored.

    Args:
        path: a `config.json`; by default `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.

    Raises (when used):
        LocalError: the file is there but cannot be read.
        InvalidContent: it is damaged.
        AccessDenied: its credential helper is missing or fails, or holds a kind of token that we do not use yet.
    """
    default = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"

    def find(host: str) -> Credentials | None:
        file = path or default
        config = _read(file)
        hub = [_DOCKER_HUB] if host in ("docker.io", "index.docker.io") else []
        names = [host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/", *hub]
        helper = next((config.helpers[name] for name in names if name in config.helpers), config.store)
        if helper:
            return _ask(helper, hub[0] if hub else host)
        found = next((config.auths[name] for name in names if name in config.auths), None)
        return _decode(found, file) if found else None

    return find


def _read(file: Path) -> _DockerConfig:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_DockerConfig)
    except FileNotFoundError:
        return _DockerConfig()
    except OSError as error:
        raise LocalError.from_os(error, "read the credentials in", file) from error
    except (ValueError, RecursionError) as error:
        raise InvalidContent(f"{file} is damaged: {error}", hint="log in again") from error


def _ask(helper: str, server: str) -> Credentials | None:
    """What the program `docker-credential-HELPER` knows of a server; nothing of what it prints is shown."""
    program = f"docker-credential-{helper}"
    if not _HELPER.fullmatch(helper):
        raise InvalidContent(f"{helper[:100]!r} is not the name of a credential helper", hint="log in again")
    try:
        done = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=HELPER_TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        raise AccessDenied(f"the credential helper {program} is not installed", hint="install it, or log in") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AccessDenied(f"the credential helper {program} does not answer", hint="log in again") from error
    if done.returncode:
        if b"credentials not found" in done.stdout:
            return None
        raise AccessDenied(f"the credential helper {program} failed for {server}", hint="log in again")
    try:
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    except (ValueError, RecursionError):
        # Without the cause, which may quote the secret.
        raise AccessDenied(f"the credential helper {program} gave no credentials for {server}") from None
    if answer.username == "<token>":
        raise AccessDenied(
            f"the credential helper {program} gave an identity token for {server}, which is not supported yet",
            hint="log in with a user name and password",
        )
    return Credentials(answer.username, answer.secret)


def _decode(auth: _Auth, file: Path) -> Credentials | None:
    if not auth.auth:
        return Credentials(auth.username, auth.password) if auth.username else None
    try:
        username, _, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
    except ValueError:
        # Without the cause, which quotes the bytes.
        raise InvalidContent(f"{file} holds credentials that cannot be decoded", hint="log in again") from None
    return Credentials(username, password.rstrip("\0"))
