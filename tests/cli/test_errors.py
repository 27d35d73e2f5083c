"""Bad input and bad luck: one line on standard error, no traceback, and the documented exit code."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cli.command import Tonnage
from stores.wire import Line, Request, wire
from tonnage.cli.output import parse_size, plain, size
from tonnage.cli.serving import parse_listen
from tonnage.content.descriptor import Descriptor
from tonnage.content.mediatype import OCI_EMPTY, OCI_MANIFEST
from tonnage.content.reference import Repository
from tonnage.content.verify import opener
from tonnage.errors import UsageError
from tonnage.stores.registry import RegistryStore
from tonnage.transfer import retry


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(retry.Retry, "wait", lambda *_: None)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["push", "nowhere", "127.0.0.1:1/a:v1"], 3, "cannot open the model folder nowhere: No such file"),
        (["pack", "nowhere", "-o", "oci:out:v1"], 3, "nowhere"),
        (["pack", "model/config.json", "-o", "oci:out:v1"], 3, "is not a folder"),
        (["pack", "empty", "-o", "oci:out:v1"], 3, "holds no files"),
        (["pack", "model"], 2, "no place to write to; add -o oci:OUT:TAG"),
        (["pack", "model", "-o", "host.example/a:v1"], 2, "is not a layout; use: tonnage push"),
        (["pack", "model", "-o", "./out"], 2, "is a folder"),
        (["pack", "model", "-o", "oci:model:v1"], 3, "is not empty, and not an OCI layout"),
        (["pack", "model", "-o", "oci:out:v 1"], 2, "is not a tag"),
        (["pack", "model", "-o", "oci:out:" + "a" * 125], 2, "is not a tag"),
        (["pack", "model", "-o", "oci:out:v1", "--max-layer", "big"], 2, "'big' is not a size; write it like 4GiB"),
        (["pack", "model", "-o", "oci:out:v1", "--max-layer", "9" * 400], 2, "is not a size"),
        (["pack", "model", "-o", "oci:out:v1", "--max-layer", "1KB"], 2, "too small; use 64KiB or more"),
        (["pack", "model", "-o", "oci:out:v1", "--target-layer", "0"], 2, "too small"),
        (["pack", "model", "-o", "oci:out:v1", "--max-layer", "64KiB", "--max-layers", "4"], 2, "raise --max-layer"),
        (["push", "model", "UPPER.example/Not/Allowed"], 2, "is not a repository name"),
        (["push", "model", "nohost"], 2, "is not a registry reference"),
        (["push", "model", "https://host.example/a"], 2, "has a URL scheme"),
        (["push", "model", ""], 2, "the target is empty"),
        (["push", "model", "./folder"], 2, "is a folder"),
        (["pull", "127.0.0.1:1/a@sha256:12", "x"], 2, "is not a digest"),
        (["pull", "oci:nowhere:v1", "x"], 4, "nowhere is not an OCI layout"),
        (["pull", "./folder", "x"], 2, "is a folder"),
        (["inspect", "oci:nowhere"], 4, "is not an OCI layout"),
        (["cp", "./model", "./other"], 2, "both SOURCE and TARGET are folders"),
        (["cp", "oci:nowhere:v1", "oci:out:v1"], 4, "is not an OCI layout"),
        (["push", "model", "127.0.0.1:1/a:v1", "-q"], 6, "127.0.0.1:1 refused the connection; check the address"),
        (["pull", "127.0.0.1:1/a:v1", "x"], 6, "refused the connection"),
        (["inspect", "registry.invalid/a:v1"], 6, "has a name that cannot be resolved"),
        (["pull", "a..b/c:v1", "x"], 6, "has a name that"),
        (["registry", "serve", "--root", "r", "--listen", "here"], 2, "'here' is no address to listen on"),
        (["registry", "serve", "--root", "r", "--listen", "127.0.0.1:99999"], 2, "is no address"),
        (["registry", "serve", "--root", "r", "--listen", "127.0.0.1:\u00b2"], 2, "is no address"),
        (["registry", "serve", "--root", "r", "--listen", "a..b:0"], 3, "cannot listen on a..b:0"),
        (["registry", "serve", "--root", "r", "--listen", "192.0.2.1:0"], 3, "cannot listen on 192.0.2.1:0"),
        (["registry", "serve", "--root", "model/config.json", "--listen", "127.0.0.1:0"], 3, "config.json"),
        (["serve", "nowhere.example/a", "--api-key-file", "none"], 3, "cannot read the API keys in none"),
        (["serve", "nowhere.example/a", "--api-key-file", "model/weights-1.bin"], 2, "is not a text file"),
        (["serve", "nowhere.example/a", "--api-key-file", "/dev/null"], 2, "holds no API key"),
        (["chat", "http://127.0.0.1:1", "-m", "hi"], 6, "127.0.0.1:1"),
    ],
)
def test_bad_input(tonnage: Tonnage, model: Path, tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    (tmp_path / "empty").mkdir()
    done = tonnage(*arguments)
    problem = done.problem
    assert text in problem
    assert done.code == code


def test_an_address_in_use(tonnage: Tonnage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = tonnage("registry", "serve", "--root", "r", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert "in use" in done.problem
    assert done.code == 3


@pytest.mark.parametrize(
    "arguments", [["push"], ["unknown"], ["pull", "a", "b", "--workers", "0"], ["pack", "m", "--max-layers", "many"]]
)
def test_wrong_usage(tonnage: Tonnage, arguments: list[str]) -> None:
    done = tonnage(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


def test_a_link_out_of_the_folder_and_a_socket(model: Path, tmp_path: Path, tonnage: Tonnage) -> None:
    """Neither is packed: what the link points to was not named, and a socket has no content."""
    (model / "link.bin").symlink_to("/proc/self/mem")
    done = tonnage("pack", model, "-o", "oci:out:v1")
    assert "is a link out of the model folder" in done.problem
    assert done.code == 3
    (model / "link.bin").unlink()
    with closing(socket.socket(socket.AF_UNIX)) as strange:
        strange.bind(str(model / "socket"))
        done = tonnage("pack", model, "-o", "oci:out:v1")
    assert "is neither a file nor a folder" in done.problem
    assert done.code == 8


def test_a_folder_that_is_not_empty(tonnage: Tonnage, model: Path, tmp_path: Path) -> None:
    tonnage("pack", model, "-o", "oci:out:v1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    done = tonnage("pull", "oci:out:v1", "full")
    assert "full is not empty, and does not hold an earlier pull" in done.problem
    assert done.code == 3
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    done = tonnage("pull", "oci:out:v1", "full/thesis.tex")
    assert "is not a folder; name a folder" in done.problem


def test_a_tag_that_is_not_there(tonnage: Tonnage, model: Path, registry: str) -> None:
    tonnage("push", model, f"{registry}/a:v1")
    done = tonnage("pull", f"{registry}/a:v2", "copy")
    assert "does not have a/manifests/v2; check the repository and the tag" in done.problem
    assert done.code == 4
    tonnage("pack", model, "-o", "oci:out:v1")
    done = tonnage("pull", "oci:out:v2", "copy")
    assert "its tags are: v1, v1-image, v1-modelpack" in done.problem
    assert not Path("copy").exists()


# --- registries that fail


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (400, 9, "HTTP 400"),
        (401, 5, "wants a user name and password; docker login 127.0.0.1"),
        (403, 5, "HTTP 403"),
        (404, 4, "does not have"),
        (429, 6, "asks us to slow down"),
        (500, 6, "HTTP 500"),
        (503, 6, "HTTP 503"),
    ],
)
@pytest.mark.parametrize("verb", ["push", "pull", "inspect"])
def test_refusals(tonnage: Tonnage, model: Path, verb: str, status: int, code: int, text: str) -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "evil\x1b[31m\r\nsecond line"}]}).encode()

    def refuse(request: Request, line: Line) -> None:
        headers = {"WWW-Authenticate": 'Basic realm="x"'}
        line.reply(status, b"" if request.method == "HEAD" else body, headers)

    with wire(refuse) as server:
        target = f"{server.host}/a/b:v1"
        places = {"push": [str(model), target], "pull": [target, "copy"], "inspect": [target]}
        done = tonnage(verb, *places[verb], "-q")
    assert text in done.problem
    assert "\x1b" not in done.problem
    assert done.code == code


@pytest.fixture
def artifact(model: Path, tonnage: Tonnage, tmp_path: Path) -> Iterator[dict[str, tuple[str, bytes]]]:
    """Path to media type and bytes of all that a registry has of the model."""
    tonnage("pack", model, "-o", "oci:out:v1", "--no-peer-tags", "-q")
    layout = tmp_path / "out"
    found: dict[str, tuple[str, bytes]] = {}
    for blob in (layout / "blobs" / "sha256").iterdir():
        data = blob.read_bytes()
        try:
            media_type = json.loads(data).get("mediaType", "")
        except ValueError:
            media_type = ""
        found[f"/v2/a/blobs/sha256:{blob.name}"] = found[f"/v2/a/manifests/sha256:{blob.name}"] = (media_type, data)
    root = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
    found["/v2/a/manifests/v1"] = found[f"/v2/a/manifests/{root}"]
    yield found


@pytest.mark.parametrize(
    ("damage", "code", "text"),
    [("short", 6, "bytes early"), ("other", 7, "is damaged: its bytes hash to"), ("longer", 7, "sends")],
)
def test_damaged_layers(
    tonnage: Tonnage, artifact: dict[str, tuple[str, bytes]], damage: str, code: int, text: str
) -> None:
    def play(request: Request, line: Line) -> None:
        media_type, data = artifact[request.path]
        if media_type or len(data) < 100_000:
            line.reply(200, data, {"Content-Type": media_type})
        elif damage == "short":
            if "range" not in request.headers:
                line.reply(200, data[:-1000], length=len(data))
            else:
                span = request.headers["range"].removeprefix("bytes=")
                line.reply(206, b"", {"Content-Range": f"bytes {span}/{len(data)}"}, length=1000)
            line.close()
        else:
            line.reply(200, bytes(len(data)) if damage == "other" else data + b"x")

    with wire(play) as server:
        done = tonnage("pull", f"{server.host}/a:v1", "copy", "-q")
    assert text in done.problem
    assert done.problem.startswith("source: ") == (damage != "other")
    assert done.code == code
    assert not Path("copy").exists()


@pytest.mark.parametrize(
    ("body", "headers", "code", "text"),
    [
        (b" " * (5 << 20), {"Content-Type": OCI_MANIFEST}, 8, "more than the limit of 4194304"),
        (b"<html>", {"Content-Type": "text/html"}, 8, "is not JSON"),
        (b"{}", {"Content-Type": OCI_MANIFEST}, 8, "config is not a JSON object"),
        (b"{}", {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": "sha256:" + "0" * 64}, 8, "config"),
    ],
)
def test_damaged_manifests(tonnage: Tonnage, body: bytes, headers: dict[str, str], code: int, text: str) -> None:
    with wire(lambda _, line: line.reply(200, body, headers)) as server:
        for arguments in (["pull", f"{server.host}/a:v1", "copy"], ["inspect", f"{server.host}/a:v1"]):
            done = tonnage(*arguments)
            assert text in done.problem
            assert done.code == code


def entry(name: str, data: bytes = b"x", **fields: object) -> bytes:
    """A tar with one entry."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize(
    "layer",
    [
        entry("../../escaped"),
        entry("/etc/escaped"),
        entry("a/../../escaped"),
        entry("link", b"", type=tarfile.SYMTYPE, linkname="../../escaped"),
        entry("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("link", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        entry("device", b"", type=tarfile.CHRTYPE),
        entry("pipe", b"", type=tarfile.FIFOTYPE),
        b"not a tar at all" * 64,
    ],
)
def test_hostile_archives(tonnage: Tonnage, registry: str, tmp_path: Path, layer: bytes) -> None:
    unpack = {"io.deis.oras.content.unpack": "true"}
    node = Descriptor.of(layer, "application/vnd.oci.image.layer.v1.tar", annotations=unpack)
    config = Descriptor.of(b"{}", OCI_EMPTY)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.to_dict(),
        "layers": [node.to_dict()],
    }
    raw = json.dumps(document).encode()
    root = Descriptor.of(raw, OCI_MANIFEST)
    with closing(RegistryStore(Repository(registry, "evil"))) as store:
        for item, data in ((node, layer), (config, b"{}"), (root, raw)):
            store.push(item, opener(data))
        store.tag(root, "v1")
    before = {path for path in tmp_path.rglob("*") if "registry" not in path.parts}
    done = tonnage("pull", f"{registry}/evil:v1", "deep/copy", "-q")
    assert "archive" in done.problem
    assert done.code == 8
    after = {path for path in tmp_path.rglob("*") if "registry" not in path.parts}
    assert all(".copy.tonnage-partial" in str(path) or path == tmp_path / "deep" for path in after - before)


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk needs privileges")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disks(tonnage: Tonnage, model: Path, small_disk: Path) -> None:
    done = tonnage("pack", model, "-o", f"oci:{small_disk}/out:v1", "-q")
    assert "target: cannot write to the layout" in done.problem
    assert "No space left on device; free some space and run the command again" in done.problem
    assert done.code == 3
    tonnage("pack", model, "-o", "oci:out:v1", "-q")
    done = tonnage("pull", "oci:out:v1", small_disk / "copy", "-q")
    assert "free" in done.problem
    assert done.code == 3


# --- small things


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1", 1),
        ("64KiB", 65536),
        ("9.5GB", 9_500_000_000),
        ("4gib", 4 << 30),
        ("512M", 512_000_000),
        (" 1 k ", 1000),
        ("2T", 2 * 10**12),
        ("1.5Ti", 3 << 39),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "1i", "1,5GB", "1PB", "0x10", "\u0661", "inf", "9" * 400])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 40, "1.0 TiB"), (5 << 50, "5120.0 TiB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:0", ("::1", 0)),
        (":8080", ("::", 8080)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


def test_others_get_no_say_over_the_terminal() -> None:
    assert plain("a\x1b[31mb\nc\u202ed [bold]") == "a [31mb c d \\[bold]"


@pytest.mark.parametrize("target", ["oci:other@{}", "{registry}/a@{}"])
def test_a_digest_that_the_content_does_not_have(tonnage: Tonnage, model: Path, registry: str, target: str) -> None:
    digest = f"sha256:{'0' * 64}"
    place = target.replace("{registry}", registry).format(digest)
    tonnage("pack", model, "-o", "oci:out:v1", "-q")
    for arguments in (("push", model, place), ("cp", "oci:out:v1", place)):
        done = tonnage(*arguments, "-q")
        assert (done.code, f"not {digest}" in done.problem) == (2, True)


def test_pull_into_a_layout_is_cp(tonnage: Tonnage, registry: str) -> None:
    assert "tonnage cp" in tonnage("pull", f"{registry}/a:v1", "oci:out:v1").problem


def test_a_cp_of_nothing_leaves_no_layout(tonnage: Tonnage, registry: str) -> None:
    assert tonnage("cp", f"{registry}/a:v1", "oci:out:v1").code == 4
    assert not Path("out").exists()


def test_a_registry_in_a_folder_of_something_else(tonnage: Tonnage, model: Path) -> None:
    assert "not a registry" in tonnage("registry", "serve", "--root", model, "--listen", "127.0.0.1:0").problem
    assert not (model / "blobs").exists()


def test_a_registry_that_is_full_is_not_asked_again(tonnage: Tonnage, model: Path) -> None:
    with wire(lambda request, line: line.reply(507 if request.method == "POST" else 404, b"")) as server:
        done = tonnage("push", model, f"{server.host}/a:v1")
    assert (done.code, "free space on the registry" in done.err) == (9, True)
    assert "trying again" not in done.err
