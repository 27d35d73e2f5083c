"""Logins: challenges, tokens, stored credentials, and what must never be asked or shown."""

# ruff: noqa: SIM117 - servers outside, expectations inside
from __future__ import annotations

import base64
import json
import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stores.wire import Line, Request, Wire, wire
from tonnage.content.descriptor import Descriptor
from tonnage.content.reference import Repository
from tonnage.content.storage import Reader
from tonnage.content.verify import opener
from tonnage.errors import AccessDenied, InvalidContent, LocalError, TonnageError, Unavailable
from tonnage.stores.registry import Credentials, CredentialSource, RegistryStore, docker_config
from tonnage.stores.registry.auth import Authenticator, parse_challenges
from tonnage.stores.registry.transport import Transport

SECRET = "correct-horse-battery"
ANNA = Credentials("anna", SECRET)

# --- challenges


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Bearer realm="https://a/t",service="s"', [("bearer", {"realm": "https://a/t", "service": "s"})]),
        ('bearer Realm="r"', [("bearer", {"realm": "r"})]),
        ('Bearer realm="a,b",scope="r:x:pull,push"', [("bearer", {"realm": "a,b", "scope": "r:x:pull,push"})]),
        ('Bearer realm="r" , service = x', [("bearer", {"realm": "r"})]),
        ("Basic realm=plain", [("basic", {"realm": "plain"})]),
        ("Basic", [("basic", {})]),
        ('Basic realm=""', [("basic", {"realm": ""})]),
        ('Basic realm="b", Bearer realm="r"', [("basic", {"realm": "b"}), ("bearer", {"realm": "r"})]),
        ('Bearer realm="r",error-uri="u",service="s"', [("bearer", {"realm": "r", "error-uri": "u", "service": "s"})]),
        ('Negotiate, Basic realm="b"', [("basic", {"realm": "b"})]),
        ("", []),
        (",,,", []),
    ],
)  # fmt: skip
def test_challenges(header: str, found: list[tuple[str, dict[str, str]]]) -> None:
    known = [(challenge.scheme, dict(challenge.parameters)) for challenge in parse_challenges(header)]
    assert [entry for entry in known if entry[0] in ("basic", "bearer")] == found


@given(st.text(max_size=300) | st.text(alphabet='Bearr realm="=,;\\', max_size=300))
@example("a" * 100_000)
@example("Bearer " + "," * 100_000)
@example('Bearer a="' * 10_000)
def test_no_challenge_is_too_much(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


# --- token servers


@dataclass
class TokenServer:
    """A registry and the token server that it names."""

    registry: Wire
    tokens: Wire
    valid: set[str] = field(default_factory=set)

    @property
    def queries(self) -> list[dict[str, list[str]]]:
        return [parse_qs(urlsplit(request.path).query) for request in self.tokens.requests]


@contextmanager
def token_server(*, lifetime: object = 300, key: str = "token", password: str = SECRET) -> Iterator[TokenServer]:
    """Tokens are numbered; the registry takes those in `valid`."""
    valid: set[str] = set()

    def give(request: Request, line: Line) -> None:
        sent = request.headers.get("authorization", "")
        if sent and base64.b64decode(sent.removeprefix("Basic ")).decode() != f"anna:{password}":
            line.reply(401, b'{"details": "wrong"}')
            return
        token = f"t{len(issued)}"
        issued.append(token)
        valid.add(token)
        line.reply(200, json.dumps({key: token, **({"expires_in": lifetime} if lifetime else {})}).encode())

    issued: list[str] = []
    with wire(give) as tokens:

        def guard(request: Request, line: Line) -> None:
            if request.headers.get("authorization", "").removeprefix("Bearer ") in valid:
                line.reply(200, b'{"tags": ["v1"]}')
                return
            challenge = f'Bearer realm="http://{tokens.host}/token",service="the registry",scope="ignored"'
            line.reply(401, b"{}", {"WWW-Authenticate": challenge})

        with wire(guard) as registry:
            yield TokenServer(registry, tokens, valid)


@contextmanager
def store_of(host: str, credentials: Credentials | None = None) -> Iterator[RegistryStore]:
    with closing(RegistryStore(Repository(host, "models/llama"), credentials=lambda _: credentials)) as store:
        yield store


@contextmanager
def authenticator(
    host: str, credentials: CredentialSource = lambda _: ANNA, clock: list[float] | None = None
) -> Iterator[Authenticator]:
    now = clock or [0.0]
    with closing(Transport()) as transport:
        yield Authenticator(host, transport, credentials, clock=lambda: now[0])


@pytest.mark.parametrize("key", ["token", "access_token"])
def test_a_token_is_fetched_once_and_kept(key: str) -> None:
    with token_server(key=key) as server, store_of(server.registry.host, ANNA) as store:
        for _ in range(3):
            assert list(store.tags()) == ["v1"]
    assert server.queries == [{"service": ["the registry"], "scope": ["repository:models/llama:pull"]}]
    assert server.tokens.requests[0].headers["authorization"] == ANNA.basic
    assert [request.headers.get("authorization") for request in server.registry.requests] == [None, *["Bearer t0"] * 3]


def test_a_token_without_credentials() -> None:
    with token_server() as server, store_of(server.registry.host) as store:
        assert list(store.tags()) == ["v1"]
    assert "authorization" not in server.tokens.requests[0].headers


def test_a_token_that_ended_in_the_middle_is_replaced() -> None:
    with token_server() as server, store_of(server.registry.host, ANNA) as store:
        assert list(store.tags()) == ["v1"]
        server.valid.clear()
        assert list(store.tags()) == ["v1"]
    assert len(server.tokens.requests) == 2
    assert server.registry.requests[-1].headers["authorization"] == "Bearer t1"


def test_a_token_is_replaced_shortly_before_its_end() -> None:
    now = [1000.0]
    with token_server(lifetime=300) as server, authenticator(server.registry.host, clock=now) as auth:
        challenge = f'Bearer realm="http://{server.tokens.host}/"'
        assert auth.header("s") is None
        assert auth.answer(challenge, "s", rejected=None) == "Bearer t0"
        now[0] += 269
        assert auth.header("s") == "Bearer t0"
        assert auth.header("another scope") is None
        now[0] += 2
        assert auth.header("s") is None
        assert auth.answer(challenge, "s", rejected=None) == "Bearer t1"


@pytest.mark.parametrize("lifetime", [None, 0, -5, "300", True, 1e300, [], 10**400])
def test_odd_lifetimes_count_as_a_minute_or_less(lifetime: object) -> None:
    now = [0.0]
    with token_server(lifetime=lifetime) as server, authenticator(server.registry.host, clock=now) as auth:
        try:
            auth.answer(f'Bearer realm="http://{server.tokens.host}/"', "s", rejected=None)
        except InvalidContent:
            assert lifetime == 10**400  # no JSON number for most parsers
            return
        now[0] += 61
        assert auth.header("s") is None


def test_a_token_that_another_thread_fetched_is_used() -> None:
    with token_server() as server, authenticator(server.registry.host) as auth:
        challenge = f'Bearer realm="http://{server.tokens.host}/"'
        first = auth.answer(challenge, "s", rejected=None)
        assert auth.answer(challenge, "s", rejected="Bearer older") == first
        assert len(server.tokens.requests) == 1
        assert auth.answer(challenge, "s", rejected=first) == "Bearer t1"


def test_several_challenges_in_several_headers() -> None:
    with token_server() as server:

        def guard(request: Request, line: Line) -> None:
            if request.headers.get("authorization") == "Bearer t0":
                line.reply(200, b'{"tags": []}')
            else:
                realm = f'Bearer realm="http://{server.tokens.host}/"'
                line.reply(401, headers={"WWW-Authenticate": 'Basic realm="x"', "www-authenticate": realm})

        with wire(guard) as registry, store_of(registry.host, ANNA) as store:
            assert list(store.tags()) == []


def test_basic() -> None:
    def guard(request: Request, line: Line) -> None:
        if request.headers.get("authorization") == ANNA.basic:
            line.reply(200, b'{"tags": ["v1"]}')
        else:
            line.reply(401, headers={"WWW-Authenticate": 'Basic realm="Registry"'})

    with wire(guard) as server:
        with store_of(server.host, ANNA) as store:
            assert list(store.tags()) == list(store.tags()) == ["v1"]
        assert len(server.requests) == 3
        with store_of(server.host) as store, pytest.raises(AccessDenied, match=r"wants a user name.*docker login 127"):
            store.tags()
        with store_of(server.host, Credentials("anna", "wrong")) as store:
            with pytest.raises(AccessDenied, match=r"refused the login \(HTTP 401\); docker login 127"):
                store.tags()


def test_a_wrong_password_for_a_token() -> None:
    with token_server(password="another") as server, store_of(server.registry.host, ANNA) as store:
        with pytest.raises(AccessDenied, match=r"gives no token for repository:models/llama:pull \(HTTP 401\)"):
            store.tags()


def test_a_token_that_is_refused_again_ends_it() -> None:
    with token_server() as server:

        def never(_: Request, line: Line) -> None:
            line.reply(401, headers={"WWW-Authenticate": f'Bearer realm="http://{server.tokens.host}/"'})

        with wire(never) as registry, store_of(registry.host, ANNA) as store:
            with pytest.raises(AccessDenied, match="refused the login"):
                store.tags()
        assert len(registry.requests) == 2


def test_a_401_before_an_upload_sends_the_body_again_from_its_start() -> None:
    opened: list[int] = []
    data = b"weights" * 1000

    def open_at(offset: int) -> Reader:
        opened.append(offset)
        return opener(data)(offset)

    def registry(request: Request, line: Line) -> None:
        if request.method == "POST":
            line.reply(202, headers={"Location": "/upload/1"})
        elif request.headers.get("authorization") != ANNA.basic:
            line.reply(401, headers={"WWW-Authenticate": "Basic"})
        else:
            line.reply(201)

    with wire(registry) as server, store_of(server.host, ANNA) as store:
        store.push(Descriptor.of(data, "x/y"), open_at)
    assert opened == [0, 0]
    assert server.requests[-1].body == data


@pytest.mark.parametrize(
    "realm",
    [
        "https://169.254.169.254/latest/meta-data/",
        "https://[fe80::1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://[fd00:ec2::254]/",
        "https://2852039166/",
        "https://0xa9fea9fe/",
        "https://0251.0376.0251.0376/",
        "https://metadata.google.internal/",
        "https://METADATA.google.internal./",
        "https://127.0.0.1/token",
        "https://127.1/token",
        "https://[::1]/token",
        "https://0.0.0.0/token",
        "https://localhost/token",
        "http://auth.example/token",
        "file:///etc/passwd",
        "ftp://auth.example/",
        "/token",
        "",
        "https://",
        "https://[",
        "https://auth.example:port/",
        "https://auth.example:99999/",
        "https://\u00e4uth.example/",
    ],
)
def test_realms_that_nobody_has_a_reason_to_name(realm: str) -> None:
    with authenticator("registry.example") as auth, pytest.raises(AccessDenied, match="names") as caught:
        auth.answer(f'Bearer realm="{realm}",service="x"', "s", rejected=None)
    assert SECRET not in str(caught.value)


def test_metadata_is_forbidden_to_local_registries_too() -> None:
    with authenticator("127.0.0.1:5000") as auth:
        for realm in ("http://169.254.169.254/", "http://metadata.google.internal/"):
            with pytest.raises(AccessDenied, match="forbidden address"):
                auth.answer(f'Bearer realm="{realm}"', "s", rejected=None)


@pytest.mark.parametrize("header", ["", 'Digest realm="x"', "Negotiate", "????"])
def test_authentication_that_we_do_not_know(header: str) -> None:
    with wire(lambda _, line: line.reply(401, headers={"WWW-Authenticate": header})) as server:
        with store_of(server.host, ANNA) as store, pytest.raises(AccessDenied, match="that we do not know"):
            store.tags()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"", InvalidContent),
        (200, b"<html>", InvalidContent),
        (200, b"[]", InvalidContent),
        (200, b"{}", InvalidContent),
        (200, b'{"token": 5}', InvalidContent),
        (200, b'{"token": ""}', InvalidContent),
        (200, b'{"token": "line\\nbreak"}', InvalidContent),
        (200, '{"token": "\u20ac"}'.encode(), InvalidContent),
        (200, b'{"token": "\xff"}', InvalidContent),
        (200, b"[" * 100_000, InvalidContent),
        (200, b'{"token": "' + b"a" * (2 << 20) + b'"}', InvalidContent),
        (400, b"", AccessDenied),
        (403, b"{}", AccessDenied),
        (404, b"{}", Unavailable),
        (429, b"", Unavailable),
        (500, b"", Unavailable),
        (503, b"", Unavailable),
    ],
)
def test_token_servers_that_fail(status: int, body: bytes, kind: type[TonnageError]) -> None:
    with wire(lambda _, line: line.reply(status, body)) as server, authenticator(server.host) as auth:
        with pytest.raises(kind, match=r"127\.0\.0\.1"):
            auth.answer(f'Bearer realm="http://{server.host}/token"', "s", rejected=None)


def test_a_token_server_that_redirects_does_not_pass_the_password_on() -> None:
    with wire(lambda _, line: line.reply(200, b'{"token": "t"}'), address="127.0.0.2") as other:
        target = f"http://{other.host}/"
        with wire(lambda _, line: line.reply(302, headers={"Location": target})) as server:
            with authenticator(server.host) as auth:
                assert auth.answer(f'Bearer realm="http://{server.host}/"', "s", rejected=None) == "Bearer t"
    assert "authorization" not in other.requests[0].headers


# --- stored credentials


def config(tmp_path: Path, auths: object) -> CredentialSource:
    file = tmp_path / "config.json"
    file.write_bytes(auths if isinstance(auths, bytes) else json.dumps({"auths": auths}).encode())
    return docker_config(file)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("r.example", "r.example"),
        ("r.example:5000", "r.example:5000"),
        ("https://r.example", "r.example"),
        ("https://r.example/v1/", "r.example"),
        ("https://r.example/v2/", "r.example"),
        ("https://index.docker.io/v1/", "docker.io"),
    ],
)
def test_docker_logins(tmp_path: Path, name: str, host: str) -> None:
    find = config(tmp_path, {name: {"auth": encoded(f"anna:{SECRET}")}, "other": {"auth": encoded("x:y")}})
    assert find(host) == ANNA
    assert find("unknown.example") is None


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"username": "anna", "password": SECRET}, ANNA),
        ({"auth": encoded(f"anna:{SECRET}"), "email": "a@b", "identitytoken": "t"}, ANNA),
        ({"auth": encoded("anna:with:colon")}, Credentials("anna", "with:colon")),
        ({"auth": encoded(f"anna:{SECRET}\0\0")}, ANNA),
        ({"auth": encoded("\u00e4nna:p\u00e4ss")}, Credentials("\u00e4nna", "p\u00e4ss")),
        ({}, None),
        ({"auth": ""}, None),
    ],
)
def test_forms_of_docker_logins(tmp_path: Path, entry: object, found: Credentials | None) -> None:
    assert config(tmp_path, {"r.example": entry})("r.example") == found


@pytest.mark.parametrize(
    "auth", ["!!!", "YW5uY", encoded("anna:" + SECRET)[:-3], base64.b64encode(b"\xff\xfe:x").decode()]
)
def test_logins_that_cannot_be_decoded(tmp_path: Path, auth: str) -> None:
    with pytest.raises(InvalidContent, match="cannot be decoded; log in again") as caught:
        config(tmp_path, {"r.example": {"auth": auth}})("r.example")
    assert auth not in shown(caught.value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b'{"auths": []}', b'{"auths": {"a": "b"}}', b'{"auths":{"\xff":{}}}', b'{"a":' + b"[" * 9999],
)
def test_a_damaged_file(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(InvalidContent, match=r"config\.json is damaged"):
        config(tmp_path, raw)("r.example")


def test_no_file_and_an_unreadable_one(tmp_path: Path) -> None:
    assert docker_config(tmp_path / "none.json")("r.example") is None
    assert docker_config()("r.example") is None
    with pytest.raises(LocalError, match="cannot read the credentials in"):
        docker_config(tmp_path)("r.example")


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper named `test`, and the file that says what it prints; it notes what it is asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker-credential-test"
    program.write_text(f'#!/bin/sh\ncat >"{tmp_path}/asked"\ncat "{tmp_path}/answer"\n. "{tmp_path}/end"\n')
    program.chmod(0o755)
    (tmp_path / "end").write_text("exit 0")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "answer"


@pytest.mark.parametrize(("host", "server"), [("r.example", "r.example"), ("docker.io", "https://index.docker.io/v1/")])
@pytest.mark.parametrize("raw", [{"credsStore": "test", "auths": {"r.example": {}}}, {"credHelpers": None}])
def test_a_credential_helper_is_asked(
    tmp_path: Path, helper: Path, host: str, server: str, raw: dict[str, object]
) -> None:
    if "credHelpers" in raw:
        raw = {"credHelpers": {server: "test"}, "credsStore": "missing"}
    helper.write_text(json.dumps({"ServerURL": "x", "Username": "anna", "Secret": SECRET}))
    assert config(tmp_path, json.dumps(raw).encode())(host) == ANNA
    assert (tmp_path / "asked").read_text() == server


def test_a_helper_that_knows_nothing(tmp_path: Path, helper: Path) -> None:
    helper.write_text("credentials not found in native keychain")
    (tmp_path / "end").write_text("exit 1")
    assert config(tmp_path, b'{"credsStore": "test"}')("r.example") is None


@pytest.mark.parametrize(
    ("answer", "end", "text"),
    [
        (f"{SECRET} is locked", "exit 1", "failed for r.example"),
        (f'["{SECRET}"]', "exit 0", "gave no credentials"),
        (json.dumps({"Username": "<token>", "Secret": SECRET}), "exit 0", "not supported yet"),
    ],
)
def test_a_helper_that_fails(tmp_path: Path, helper: Path, answer: str, end: str, text: str) -> None:
    helper.write_text(answer)
    (tmp_path / "end").write_text(end)
    with pytest.raises(AccessDenied, match=text) as caught:
        config(tmp_path, b'{"credsStore": "test"}')("r.example")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_helper_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="docker-credential-none-such is not installed"):
        config(tmp_path, b'{"credsStore": "none-such"}')("r.example")
    with pytest.raises(InvalidContent, match="not the name of a credential helper"):
        config(tmp_path, b'{"credsStore": "../../bin/sh"}')("r.example")


def test_a_plain_registry_may_have_a_plain_token_server() -> None:
    with token_server() as server, closing(Transport()) as transport:
        auth = Authenticator("localhost:1", transport, lambda _: ANNA, plain_http=True)
        assert auth.answer(f'Bearer realm="http://{server.tokens.host}/"', "s", rejected=None).startswith("Bearer ")
        plain = Authenticator("harbor.lan", transport, lambda _: ANNA, plain_http=True)
        with pytest.raises(AccessDenied, match="forbidden address"):
            plain.answer('Bearer realm="http://169.254.169.254/"', "s", rejected=None)
        with pytest.raises(Unavailable, match=r"harbor\.invalid"):
            plain.answer('Bearer realm="http://harbor.invalid/token"', "s", rejected=None)


def test_docker_config_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config(tmp_path, {"r.example": {"auth": encoded(f"anna:{SECRET}")}})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert docker_config()("r.example") == ANNA
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".docker").mkdir()
    config(tmp_path / ".docker", {"r.example": {"auth": encoded("home:x")}})
    assert docker_config()("r.example") == Credentials("home", "x")


# --- secrets


def shown(error: BaseException) -> str:
    """All that anyone may come to see of an error: its text, and its traceback with the values of all variables."""
    captured = traceback.TracebackException.from_exception(error, capture_locals=False)
    return f"{error} {error!r} {''.join(captured.format())}"


def test_no_secret_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    basic = ANNA.basic.removeprefix("Basic ")
    assert SECRET not in repr(ANNA)
    assert basic not in repr(ANNA)

    def tell_all(request: Request, line: Line) -> None:
        line.reply(401, request.headers.get("authorization", "").encode(), {"WWW-Authenticate": "Basic"})

    errors: list[TonnageError] = []
    with wire(tell_all) as server, store_of(server.host, ANNA) as store:
        for call in (store.tags, lambda: store.resolve("v1")):
            with pytest.raises(TonnageError) as caught:
                call()
            errors.append(caught.value)
        assert basic not in repr(vars(store)) + repr(vars(store._auth))
    with wire(lambda _, line: line.reply(500, ANNA.basic.encode())) as server, authenticator(server.host) as auth:
        with pytest.raises(TonnageError) as caught:
            auth.answer(f'Bearer realm="http://user:{SECRET}@{server.host}/"', "s", rejected=None)
        errors.append(caught.value)
    with token_server() as server_, authenticator(server_.registry.host) as auth:
        auth.answer(f'Bearer realm="http://{server_.tokens.host}/"', "s", rejected=None)
        assert "t0" not in repr(vars(auth)["_tokens"])
    for text in (*map(shown, errors), caplog.text):
        assert SECRET not in text
        assert basic not in text
