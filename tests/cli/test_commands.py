"""What each command does when all is well, and what it prints."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest

import tonnage as package
from cli.command import Done, Tonnage, tree
from stores.wire import Line, Request, wire
from support.gateways import gateway
from tonnage.cli.output import Output
from tonnage.cli.serve import local_model, model_name
from tonnage.cli.target import parse_any_target
from tonnage.content.reference import Folder, Layout, Repository
from tonnage.gateway.engines.scripted import ScriptedEngine
from tonnage.gateway.options import with_engine


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "tonnage", *map(str, arguments)]


# --- pack, push, pull, cp


def test_pack(tonnage: Tonnage, model: Path) -> None:
    done = tonnage("pack", model, "-o", "oci:out:v1", "--json").json
    assert done["target"] == "oci:out:v1"
    assert done["tags"] == ["v1", "v1-modelpack", "v1-image"]
    assert done["digest"].startswith("sha256:")
    assert {layer["kind"] for layer in done["layers"]} == {"weight", "weight.config", "doc", "code"}
    assert done["moved"] == done["bytes"] > 200_000
    assert (done["skipped"], set(done["manifests"])) == (0, {"modelpack", "image"})
    assert tonnage("pack", model, "-o", "oci:out:v1", "--json").json["digest"] == done["digest"]


def test_pack_without_the_tags_for_peers(tonnage: Tonnage, model: Path) -> None:
    assert tonnage("pack", model, "-o", "oci:out:v1", "--json", "--no-peer-tags").json["tags"] == ["v1"]


def test_plan(tonnage: Tonnage, model: Path, tmp_path: Path) -> None:
    done = tonnage("pack", model, "--plan", "--json", "--target-layer", "110KB").json
    assert (done["files"], done["bytes"]) == (5, 200_034)
    weights = [layer for layer in done["layers"] if layer["kind"] == "weight"]
    assert [[file["path"] for file in layer["files"]] for layer in weights] == [["weights-1.bin"], ["weights-2.bin"]]
    prose = tonnage("pack", model, "--plan", "--max-layer", "64KiB")
    assert re.search(r"5 files, 195\.3 KiB, in \d+ layers", prose.out)
    assert "weights-1.bin  from byte" in prose.out
    assert {path.name for path in tmp_path.iterdir()} <= {"model", "registry"}


def test_push_and_pull(tonnage: Tonnage, model: Path, registry: str, tmp_path: Path) -> None:
    target = f"{registry}/models/llama:v1"
    pushed = tonnage("push", model, target, "--json").json
    assert (pushed["target"], pushed["tags"]) == (target, ["v1", "v1-modelpack", "v1-image"])
    pulled = tonnage("pull", target, "copy", "--json").json
    assert pulled["digest"] == pushed["digest"]
    assert pulled["manifest"] == pushed["manifests"]["modelpack"]
    assert (pulled["source"], pulled["folder"], pulled["warnings"]) == (target, "copy", [])
    assert tree(tmp_path / "copy") == tree(model)
    again = tonnage("pull", target, "copy", "--json").json
    assert (again["moved"], again["digest"]) == (0, pushed["digest"])
    by_digest = tonnage("pull", f"{registry}/models/llama@{pushed['digest']}", "other", "--json").json
    assert by_digest["digest"] == pushed["digest"]


def test_pushing_again_moves_nothing(tonnage: Tonnage, model: Path, registry: str) -> None:
    target = f"{registry}/models/llama:v1"
    tonnage("push", model, target, "-q")
    again = tonnage("push", model, target, "--json").json
    assert again["moved"] == 0
    assert "it was there already" in tonnage("push", model, target).out


def test_a_second_version_keeps_the_layers_of_its_base(tonnage: Tonnage, model: Path, registry: str) -> None:
    repository = f"{registry}/models/llama"
    sizes = ["--target-layer", "110KB"]
    first = tonnage("push", model, f"{repository}:v1", "--json", *sizes).json
    (model / "config.json").write_text('{"model_type": "changed"}')
    (model / "weights-3.bin").write_bytes(bytes(5000))
    base = ["--base", f"{repository}:v1"]
    second = tonnage("push", model, f"{repository}:v2", "--json", *base, "--target-layer", "1GB").json
    weights = [{layer["digest"] for layer in done["layers"] if layer["kind"] == "weight"} for done in (first, second)]
    assert weights[0] < weights[1]
    assert second["moved"] < 50_000
    planned = tonnage("pack", model, "--plan", "--json", *base, "--target-layer", "1GB").json
    assert len(planned["layers"]) == len(second["layers"])


def test_cp_in_every_direction(tonnage: Tonnage, model: Path, registry: str, tmp_path: Path) -> None:
    digests = {
        tonnage("cp", "./model", "oci:a:v1", "--json").json["digest"],
        tonnage("cp", "model", f"{registry}/b:v1", "--json").json["digest"],
        tonnage("cp", "oci:a:v1", f"{registry}/c:v2", "--json").json["digest"],
        tonnage("cp", f"{registry}/c:v2", "oci:d:v3", "--json").json["digest"],
        tonnage("cp", f"{registry}/c:v2", f"{registry}/e/f:v4", "--json").json["digest"],
        tonnage("cp", "oci:d:v3", "oci:g:v5", "--json").json["digest"],
        tonnage("cp", "oci:g:v5", "./from-layout", "--json").json["digest"],
        tonnage("cp", f"{registry}/e/f:v4", "file:from-registry", "--json").json["digest"],
    }
    assert len(digests) == 1
    assert tree(tmp_path / "from-layout") == tree(tmp_path / "from-registry") == tree(model)


def test_targets_without_a_tag(tonnage: Tonnage, model: Path, registry: str) -> None:
    assert tonnage("pack", model, "-o", "oci:out", "--json").json["tags"][0] == "latest"
    assert tonnage("pull", "oci:out", "a", "-q").code == 0
    assert tonnage("push", model, f"{registry}/m", "--json").json["tags"][0] == "latest"
    assert tonnage("pull", f"{registry}/m", "b", "-q").code == 0


def test_names_with_brackets_are_shown_as_they_are(tonnage: Tonnage, model: Path) -> None:
    model.rename("[red]model")
    done = tonnage("pack", "[red]model", "-o", "oci:[bold]out:v1")
    assert "packed oci:[bold]out:v1" in done.out
    assert "[bold]out" in tonnage("inspect", "oci:[bold]out:v1").out


# --- inspect


def test_inspect(tonnage: Tonnage, model: Path, registry: str) -> None:
    target = f"{registry}/models/llama:v1"
    pushed = tonnage("push", model, target, "--json").json
    done = tonnage("inspect", target, "--json").json
    assert (done["target"], done["digest"], done["format"]) == (target, pushed["digest"], "modelpack")
    assert done["manifest"] == pushed["manifests"]["modelpack"]
    assert [file["path"] for file in done["files"]] == [
        "README.md",
        "config.json",
        "sub/modeling.py",
        "weights-1.bin",
        "weights-2.bin",
    ]
    assert done["size"] == sum(layer["size"] for layer in done["layers"])
    assert {node["mediaType"] for node in done["otherManifests"]} == {"application/vnd.oci.image.manifest.v1+json"}
    assert done["consumers"][0] == "tonnage"
    prose = tonnage("inspect", target).out
    for text in (pushed["digest"], "weights-1.bin", "97.7 KiB", "KServe", target):
        assert text in prose
    for kind in ("image", "modelpack"):
        assert tonnage("inspect", f"{registry}/models/llama:v1-{kind}", "--json").json["format"] == kind


def test_inspect_reads_no_weights(tonnage: Tonnage, model: Path, tmp_path: Path) -> None:
    tonnage("pack", model, "-o", "oci:out:v1")
    for blob in (tmp_path / "out" / "blobs" / "sha256").iterdir():
        if blob.stat().st_size > 50_000:
            blob.unlink()
    assert len(tonnage("inspect", "oci:out:v1", "--json").json["files"]) == 5


# --- what is printed where


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "model", "-o", "oci:new:v1"],
        ["pack", "model", "--plan"],
        ["push", "model", "{registry}/n:v1"],
        ["pull", "oci:out:v1", "copy"],
        ["cp", "oci:out:v1", "oci:second:v1"],
        ["inspect", "oci:out:v1"],
    ],
)
def test_quiet_is_silent_and_json_is_one_line(
    tonnage: Tonnage, model: Path, registry: str, arguments: list[str]
) -> None:
    tonnage("pack", model, "-o", "oci:out:v1")
    arguments = [text.format(registry=registry) for text in arguments]
    quiet = tonnage(*arguments, "--quiet")
    assert quiet == Done(0, "", "")
    assert isinstance(tonnage(*arguments, "--json").json, dict)
    assert isinstance(tonnage(*arguments, "--json", "-q").json, dict)
    prose = tonnage(*arguments)
    assert prose.code == 0
    assert prose.out


def test_version(tonnage: Tonnage) -> None:
    assert tonnage("version").out == f"tonnage {package.__version__}\n"
    assert tonnage("version", "--json").json["version"] == package.__version__


def test_help_of_every_command(tonnage: Tonnage) -> None:
    listing = tonnage("--help").out
    for name in ("pack", "push", "pull", "cp", "inspect", "registry", "serve", "chat", "version"):
        assert name in listing
        arguments = [name] if name != "registry" else [name, "serve"]
        text = tonnage(*arguments, "--help")
        assert text.code == 0
        assert "Exit codes: 0 done" in text.out or name == "registry"
        assert "Example: tonnage" in " ".join(text.out.split()) or name == "version"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    environment = {**os.environ, "_TONNAGE_COMPLETE": f"source_{shell}"}
    code = "from tonnage.cli.main import app; app(prog_name='tonnage')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "_TONNAGE_COMPLETE" in done.stdout
    assert done.stderr == ""


# --- as a process


def test_a_process_from_end_to_end(model: Path, tmp_path: Path) -> None:
    serve = command("registry", "serve", "--root", "store", "--listen", "127.0.0.1:0", "--json")
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        assert told["root"] == "store"
        host = told["url"].removeprefix("http://")
        for arguments in (["push", model, f"{host}/a/b:v1"], ["pull", f"{host}/a/b:v1", "copy"]):
            done = subprocess.run(command(*arguments, "--json"), capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
            assert json.loads(done.stdout)["moved"] > 0
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=30)
    assert (server.returncode, out, err) == (0, "", "")
    assert tree(tmp_path / "copy") == tree(model)


def test_a_registry_that_is_read_only(model: Path, tonnage: Tonnage, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    serve = command("registry", "serve", "--root", "store", "--listen", "127.0.0.1:0", "--json", "--read-only")
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        host = json.loads(server.stdout.readline())["url"].removeprefix("http://")
        done = tonnage("push", model, f"{host}/a:v1", "-q")
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)
    assert done.code == 9
    assert "this registry is read-only" in done.problem
    assert server.returncode == 0


def test_ctrl_c_ends_a_push_at_once_with_130(model: Path) -> None:
    """Even when the registry has stopped to answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}/a:v1"
        with subprocess.Popen(command("push", model, target), stderr=subprocess.PIPE, text=True) as push:
            connection, _ = silent.accept()
            connection.recv(1)
            push.send_signal(signal.SIGINT)
            _, err = push.communicate(timeout=20)
            connection.close()
    assert push.returncode == 130
    assert "Traceback" not in err


def test_a_reader_that_has_seen_enough() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command("version"), stdout=closed, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == ""


# --- the cache, and a conversation


def test_where_serve_looks_for_models(
    tonnage: Tonnage, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option, else the environment, else the user's cache; the engine then refuses what is no model."""
    from tonnage.cli.output import Output
    from tonnage.cli.serve import local_model
    from tonnage.content.reference import parse_target

    digest = tonnage("pack", model, "-o", "oci:out:v1", "--json").json["digest"].removeprefix("sha256:")
    target, output = parse_target("oci:out:v1"), Output(quiet=True)
    assert local_model(target, output) == tmp_path / "home" / ".cache" / "tonnage" / "models" / "sha256" / digest
    monkeypatch.setenv("TONNAGE_CACHE", str(tmp_path / "by-environment"))
    assert local_model(target, output) == tmp_path / "by-environment" / "models" / "sha256" / digest
    assert local_model(target, output, cache=tmp_path / "by-option").is_relative_to(tmp_path / "by-option")
    assert (tmp_path / "by-environment" / "models" / "sha256" / digest / "config.json").is_file()


def test_a_conversation(tonnage: Tonnage) -> None:
    with gateway(with_engine(ScriptedEngine(models=["parrot"]))) as url:
        done = tonnage("chat", url, "-m", "a ship is safe in harbour", "--json").json
        assert done == {
            "model": "parrot",
            "question": "a ship is safe in harbour",
            "answer": "a ship is safe in harbour",
        }
        assert tonnage("chat", url, "-m", "hello").out == "hello\n"
        assert "unknown" in tonnage("chat", url, "-m", "hello", "--model", "unknown").problem


def test_ctrl_c_ends_hashing_at_once(tmp_path: Path) -> None:
    """A layer may take minutes; what was hashed so far is of no use, so nobody should wait for the rest."""
    (tmp_path / "big").mkdir()
    for number in range(2):
        with (tmp_path / "big" / f"{number}.safetensors").open("wb") as file:
            file.truncate(1 << 40)
    arguments = command("pack", tmp_path / "big", "-o", "oci:out:v1", "--max-layer", "2TiB", "--target-layer", "1TiB")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # The first line of progress says that hashing is under way.
        assert "hashing" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_registry_that_fails_once_is_asked_again(tonnage: Tonnage, model: Path, registry: str) -> None:
    tonnage("push", model, f"{registry}/a:v1")
    failed: set[str] = set()

    def play(request: Request, line: Line) -> None:
        connection = HTTPConnection(registry)
        connection.request(request.method, request.path)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if request.path not in failed:
            failed.add(request.path)
            line.reply(503, b"")
        else:
            line.reply(answer.status, data, {"Content-Type": answer.headers["Content-Type"]})

    with wire(play) as server:
        done = tonnage("pull", f"{server.host}/a:v1", "copy")
    assert done.code == 0, done.err
    assert "trying again" in done.err
    assert (Path("copy") / "config.json").exists()


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Folder("/models/llama-3.1"), "llama-3.1"),
        (Folder("/models/SmolLM2-1.7B.gguf"), "SmolLM2-1.7B"),
        (Layout("/models/llama-3.1", "v1"), "llama-3.1"),
        (Repository("h:1", "a/llama-3.1", "v1"), "llama-3.1"),
    ],
)
def test_a_served_model_is_named_after_where_it_is(target: Folder | Layout | Repository, name: str) -> None:
    assert model_name(target) == name


def test_a_model_in_the_cache_needs_no_registry_when_named_by_digest(
    tonnage: Tonnage, model: Path, registry: str, tmp_path: Path
) -> None:
    pushed = tonnage("push", model, f"{registry}/a:v1", "--json").json
    target = parse_any_target(f"{registry}/a@{pushed['digest']}")
    assert isinstance(target, Repository)
    folder = local_model(target, Output(quiet=True), cache=tmp_path / "cache")
    gone = Repository("127.0.0.1:1", "a", None, target.digest)
    assert local_model(gone, Output(quiet=True), cache=tmp_path / "cache") == folder


def test_names_from_outside_do_not_reach_the_terminal_raw(tonnage: Tonnage, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "\x1b[31mred.json").write_text("{}")
    tonnage("pack", tmp_path / "evil", "-o", "oci:out:v1")
    done = tonnage("inspect", "oci:out:v1")
    assert "red.json" in done.out
    assert "\x1b" not in done.out
