"""Target strings: what each form means, and that nothing else gets through."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tonnage.content.digest import Digest
from tonnage.content.reference import Folder, Layout, Repository, Target, parse_repository, parse_target
from tonnage.errors import InvalidReference

D = Digest("sha256:" + "0" * 64)

GOOD: list[tuple[str, Target]] = [
    (".", Folder(".")),
    ("..", Folder("..")),
    ("./m", Folder("./m")),
    ("../m", Folder("../m")),
    ("/m", Folder("/m")),
    ("/", Folder("/")),
    ("~/m", Folder("~/m")),
    ("~someone", Folder("~someone")),
    ("./host.io/m:1", Folder("./host.io/m:1")),
    ("./m@home", Folder("./m@home")),
    ("file:m", Folder("m")),
    ("file:m:1", Folder("m:1")),
    ("file:/m", Folder("/m")),
    ("file:///m", Folder("/m")),
    ("file:", Folder(".")),
    ("oci:d", Layout("d")),
    ("oci:d:v1", Layout("d", "v1")),
    ("oci:/a/d:v1", Layout("/a/d", "v1")),
    ("oci:./a:b/d", Layout("./a:b/d")),
    ("oci:a:b:c", Layout("a:b", "c")),
    (f"oci:d@{D}", Layout("d", None, D)),
    (f"oci:d:v1@{D}", Layout("d", "v1", D)),
    ("oci:user@d", Layout("user@d")),
    ("localhost/m", Repository("localhost", "m")),
    ("localhost:5000/m", Repository("localhost:5000", "m")),
    ("h.io/m", Repository("h.io", "m")),
    ("h.io/a/b/c:v1", Repository("h.io", "a/b/c", "v1")),
    (f"h.io/m@{D}", Repository("h.io", "m", None, D)),
    (f"h.io/m:v1@{D}", Repository("h.io", "m", "v1", D)),
    ("h:65535/m", Repository("h:65535", "m")),
    ("127.0.0.1:5000/a__b/c--d.e:_x", Repository("127.0.0.1:5000", "a__b/c--d.e", "_x")),
    ("[::1]:5000/m:v", Repository("[::1]:5000", "m", "v")),
    ("[::1]/m", Repository("[::1]", "m")),
    ("Registry.Example.COM/m", Repository("Registry.Example.COM", "m")),
    ("h.io/m:" + "t" * 128, Repository("h.io", "m", "t" * 128)),
]


@pytest.mark.parametrize(("text", "expected"), GOOD, ids=[text[:40] for text, _ in GOOD])
def test_forms(text: str, expected: Target) -> None:
    assert parse_target(text) == expected
    if not isinstance(expected, Folder):
        assert parse_target(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "./a\0b",
        "h.io/m\0",
        "m",
        "m:v1",
        "a/b",
        "library/m:1",
        "h.io",
        "h.io/",
        "h.io:v1",
        "h.io//m",
        "h.io/m/",
        "h.io/M",
        "h.io/m:",
        "h.io/m:v 1",
        "h.io/m:-x",
        "h.io/m:" + "t" * 129,
        "h.io/m:a/b",
        "h.io/m:v1:v2",
        "h.io/" + "m" * 256,
        "h.io/m@sha256:abc",
        f"h.io/m@md5:{'0' * 32}",
        f"h.io/m@{D}@{D}",
        f"h.io@{D}",
        f"@{D}",
        "h.io/m@",
        "h.io/m ",
        " h.io/m",
        "h.io/m\n",
        "h.io/a___b",
        "h.io/.a",
        "h.io/a..b",
        "h.io/../b",
        "-h.io/m",
        "h.io-/m",
        "h:port/m",
        "h:0/m",
        "h:65536/m",
        "h:99999/m",
        "h:123456/m",
        "user@h.io/m",
        "user:pw@h.io/m",
        "h.io?x/m",
        "[::::]/m",
        "[1.2.3.4]/m",
        "[::1/m",
        "[]/m",
        "[fe80::1%25eth0]/m",
        "https://h.io/m",
        "s3://bucket/m",
        "oci:",
        "oci::v1",
        f"oci:@{D}",
        "oci:d:v 1",
        "oci:user@d:v1",
        "oci:d@sha256:12",
        "ünicode.io/m",
        "h.io/ü",
        "h.io/m:ü",
        "h.io/m:" + chr(0x661),
    ],
)
def test_refused_with_a_reason(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_target(text)
    assert str(caught.value)


def test_reference_of_a_repository() -> None:
    assert parse_repository("h.io/m").reference == "latest"
    assert parse_repository("h.io/m:v1").reference == "v1"
    assert parse_repository(f"h.io/m:v1@{D}").reference == D
    assert Layout("d").reference is None
    assert Layout("d", "v1").reference == "v1"
    assert Layout("d", "v1", D).reference == D


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("reg.localhost:5000", True),
        ("127.0.0.1", True),
        ("127.9.9.9:80", True),
        ("[::1]:5000", True),
        ("[::2]:5000", False),
        ("10.0.0.1:5000", False),
        ("localhost.example.com", False),
        ("h.io", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert parse_repository(f"{host}/m").is_loopback is expected


PIECES = st.sampled_from(
    [
        *"[]:@/.~ %_-\0\n\u00e9\ud800",
        "..",
        "//",
        "oci:",
        "file:",
        "h.io",
        "localhost",
        "[::1]",
        "a",
        "B",
        "5000",
        "v1",
        D,
    ]
)


@settings(max_examples=200)
@given(st.text(max_size=30) | st.lists(PIECES, max_size=8).map("".join))
@example("[" * 1000 + "/")
@example("a." * 5000 + "/" + "b-" * 5000)
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        target = parse_target(text)
    except InvalidReference as error:
        assert error.message
        return
    assert isinstance(target, Folder | Layout | Repository)
    if isinstance(target, Repository):
        assert parse_target(str(target)) == target
        assert target.is_loopback in (True, False)
        assert target.reference
