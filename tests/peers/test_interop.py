"""What others make of our artifacts, and we of theirs: real clients, against a real registry of another project."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.peers import docker_registry, peer, run_peer

pytestmark = pytest.mark.peers

FILES = {
    "config.json": b'{"model_type": "llama"}\n',
    "tokenizer.json": b"{}" * 2000,
    "README.md": b"# A model\n",
    "sub/modeling.py": b"print('hello')\n",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 8192,
    "model-00002-of-00002.safetensors": b"weights!" * 300_001,
    "empty.txt": b"",
    "a" * 120 + ".json": b"long name",
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def pushed(registry: str, model: Path) -> str:
    target = f"{registry}/peers/model:v1"
    tonnage("push", str(model), target, "--target-layer", "2MiB")
    return target


def tonnage(*arguments: str) -> dict[str, Any]:
    """Run our command; returns its JSON, with standard error under `stderr`."""
    done = subprocess.run(
        [sys.executable, "-m", "tonnage", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return {**result, "stderr": done.stderr}


def tree(folder: Path) -> dict[str, bytes]:
    """Path to content of every file, without our record."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".tonnage.json"
    }


def tree_of_tar(path: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return found


def test_push_and_pull_through_docker_registry(pushed: str, tmp_path: Path) -> None:
    result = tonnage("pull", pushed, str(tmp_path / "out"))
    assert tree(tmp_path / "out") == FILES
    assert result["warnings"] == []


def test_skopeo_inspects(pushed: str) -> None:
    seen = json.loads(run_peer("skopeo", "inspect", "--tls-verify=false", f"docker://{pushed}"))
    ours = tonnage("inspect", pushed)
    assert seen["Digest"] == ours["digest"]
    assert seen["Layers"][:-1] == [layer["digest"] for layer in ours["layers"]]
    assert {"v1", "v1-image", "v1-modelpack"} <= set(seen["RepoTags"])


def test_skopeo_copies_the_whole_index_out_and_in_again(pushed: str, registry: str, tmp_path: Path) -> None:
    everything = ("--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false")
    run_peer("skopeo", "copy", *everything, f"docker://{pushed}", f"oci:{tmp_path}/layout:v1")
    run_peer("skopeo", "copy", *everything, f"oci:{tmp_path}/layout:v1", f"docker://{registry}/peers/again:v1")
    ours = tonnage("inspect", pushed)
    assert tonnage("inspect", f"oci:{tmp_path}/layout:v1")["digest"] == ours["digest"]
    assert tonnage("inspect", f"{registry}/peers/again:v1")["digest"] == ours["digest"]
    tonnage("pull", f"oci:{tmp_path}/layout:v1", str(tmp_path / "out"))
    assert tree(tmp_path / "out") == FILES


def test_skopeo_compresses_on_the_way_and_we_say_so(model: Path, tmp_path: Path) -> None:
    # A registry of its own: skopeo sends no layer twice to one where it remembers the uncompressed blob.
    layout = f"oci:{tmp_path}/layout:v1"
    tonnage("pack", str(model), "-o", layout)
    with docker_registry(tmp_path) as fresh:
        run_peer("skopeo", "copy", "--dest-tls-verify=false", "--dest-compress", layout, f"docker://{fresh}/gz:v1")
        seen = tonnage("inspect", f"{fresh}/gz:v1")
        assert all(layer["mediaType"].endswith("tar+gzip") for layer in seen["layers"])
        assert "compressed on their way" in " ".join(seen["warnings"])
        pulled = tonnage("pull", f"{fresh}/gz:v1", str(tmp_path / "out"))
    assert "compressed on their way" in pulled["stderr"]
    assert tree(tmp_path / "out") == FILES


def test_skopeo_keeps_digests_when_told_to(model: Path, tmp_path: Path) -> None:
    layout = f"oci:{tmp_path}/layout:v1"
    tonnage("pack", str(model), "-o", layout)
    with docker_registry(tmp_path) as fresh:
        run_peer("skopeo", "copy", "--preserve-digests", "--dest-tls-verify=false", layout, f"docker://{fresh}/kept:v1")
        seen = tonnage("inspect", f"{fresh}/kept:v1")
    assert seen["warnings"] == []
    assert seen["format"] == "image"
    assert [entry["path"] for entry in seen["files"]] == sorted(FILES)


def test_oras_pulls_archives_that_unpack_to_the_model(pushed: str, tmp_path: Path) -> None:
    run_peer("oras", "pull", "--plain-http", pushed, "-o", str(tmp_path / "out"))
    found: dict[str, bytes] = {}
    for archive in (tmp_path / "out").glob("*.tar"):
        found |= tree_of_tar(archive)
    assert found == FILES


def test_oras_reads_manifest_and_copies(pushed: str, registry: str) -> None:
    manifest = json.loads(run_peer("oras", "manifest", "fetch", "--plain-http", f"{pushed}-modelpack"))
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    copied = f"{registry}/peers/oras-copy:v1"
    run_peer("oras", "cp", "--from-plain-http", "--to-plain-http", pushed, copied)
    assert tonnage("inspect", copied)["digest"] == tonnage("inspect", pushed)["digest"]


def test_crane_exports_the_files_and_the_link(pushed: str, tmp_path: Path) -> None:
    run_peer("crane", "export", "--insecure", pushed, str(tmp_path / "image.tar"))
    assert tree_of_tar(tmp_path / "image.tar") == FILES
    listing = run_peer("tar", "tvf", str(tmp_path / "image.tar"))
    assert "models -> ." in listing


def test_crane_validates(pushed: str) -> None:
    # Without --fast, crane up to 0.22.1 gunzips every layer, and so refuses any uncompressed one, ours or others'.
    assert "PASS" in run_peer("crane", "validate", "--fast", "--insecure", "--remote", pushed)


def test_crane_validates_the_recompressed_copy_in_full(model: Path, tmp_path: Path) -> None:
    layout = f"oci:{tmp_path}/layout:v1"
    tonnage("pack", str(model), "-o", layout)
    with docker_registry(tmp_path) as fresh:
        run_peer("skopeo", "copy", "--dest-tls-verify=false", "--dest-compress", layout, f"docker://{fresh}/gz:v1")
        assert "PASS" in run_peer("crane", "validate", "--insecure", "--remote", f"{fresh}/gz:v1")


@pytest.mark.parametrize("client", ["oras", "oras-py"])
def test_we_read_what_oras_pushes(client: str, model: Path, registry: str, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a file beside the folder")
    target = f"{registry}/peers/{client}:v1"
    run_peer("cp", "-r", str(model), str(tmp_path / "folder"))
    if client == "oras":
        run_peer("oras", "push", "--plain-http", target, "folder", "note.txt", cwd=tmp_path)
    else:
        code = (
            "import oras.client, sys;"
            "oras.client.OrasClient(insecure=True).push(target=sys.argv[1], files=['folder', 'note.txt'])"
        )
        subprocess.run([sys.executable, "-c", code, target], cwd=tmp_path, check=True, timeout=100, capture_output=True)
    tonnage("pull", target, str(tmp_path / "out"))
    expected = {f"folder/{path}": data for path, data in FILES.items()}
    assert tree(tmp_path / "out") == {**expected, "note.txt": b"a file beside the folder"}


def test_we_read_an_image_that_crane_made(model: Path, registry: str, tmp_path: Path) -> None:
    target = f"{registry}/peers/crane:v1"
    with tarfile.open(tmp_path / "layer.tar", "w") as archive:
        archive.add(model, arcname="models")
    run_peer("crane", "append", "--insecure", "--new_layer", str(tmp_path / "layer.tar"), "--new_tag", target)
    tonnage("pull", target, str(tmp_path / "out"))
    assert tree(tmp_path / "out") == {f"models/{path}": data for path, data in FILES.items()}


def test_every_peer_is_here() -> None:
    """Says in one place what is missing, for whoever reads the summary."""
    for name in ("docker-registry", "skopeo", "oras", "crane"):
        peer(name)
