"""Manifests, tags, referrers and lists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from distribution.client import EMPTY, OCI_INDEX, OCI_MANIFEST, Client, describe, digest, manifest
from tonnage.content.manifest import MAX_MANIFEST_SIZE
from tonnage.distribution.listing import page

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def test_by_tag_and_digest(client: Client) -> None:
    reply, raw = client.manifest("a/b", "v1", annotations={"x": "y"}, unknown={"kept": 1})
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, digest(raw))
    assert reply.headers["Location"] == f"/v2/a/b/manifests/{digest(raw)}"
    for reference in ("v1", digest(raw), quote(digest(raw), safe="")):
        got, head = (client(method, f"/v2/a/b/manifests/{reference}") for method in ("GET", "HEAD"))
        assert (got.status, got.body, head.status, head.body) == (200, raw, 200, b"")
        for reply in (got, head):
            assert reply.headers["Content-Type"] == OCI_MANIFEST
            assert reply.headers["Content-Length"] == str(len(raw))
            assert reply.headers["Docker-Content-Digest"] == digest(raw)


def test_type_is_the_one_it_came_with(client: Client) -> None:
    client.blob("a", EMPTY)
    raw = json.dumps({"schemaVersion": 2, "config": describe(EMPTY), "layers": []}).encode()
    client("PUT", "/v2/a/manifests/x", raw, {"Content-Type": f"{DOCKER_MANIFEST}; charset=utf-8"})
    assert client("GET", "/v2/a/manifests/x").headers["Content-Type"] == DOCKER_MANIFEST


def test_digest_of_either_algorithm(client: Client) -> None:
    name = digest(manifest(), "sha512")
    assert client.manifest("a", name)[0].headers["Docker-Content-Digest"] == name
    assert client("GET", f"/v2/a/manifests/{name}").body == manifest()


def test_wrong_digest(client: Client) -> None:
    reply, raw = client.manifest("a", digest(b"x"))
    assert (reply.status, reply.codes) == (400, ["DIGEST_INVALID"])
    assert client("GET", f"/v2/a/manifests/{digest(raw)}").status == 404


def test_tags_of_a_digest(client: Client) -> None:
    reply, raw = client.manifest("a", f"{digest(manifest())}?tag=x&tag=y")
    assert reply.status == 201
    assert client("GET", "/v2/a/manifests/y").body == raw


@pytest.mark.parametrize("key", ["config", "layers"])
def test_missing_blobs(client: Client, key: str) -> None:
    lacking = describe(b"not there")
    reply, _ = client.manifest("a", "v1", **{key: lacking if key == "config" else [lacking]})
    assert (reply.status, reply.codes) == (404, ["MANIFEST_BLOB_UNKNOWN"])
    assert reply.json["errors"][0]["detail"][0]["digest"] == lacking["digest"]
    assert client("GET", "/v2/a/manifests/v1").status == 404


def test_blob_of_another_repository_is_missing(client: Client) -> None:
    client.blob("b", b"layer")
    assert client.manifest("a", "v1", layers=[describe(b"layer")])[0].codes == ["MANIFEST_BLOB_UNKNOWN"]


def test_layers_that_live_elsewhere_may_be_missing(client: Client) -> None:
    layer = {**describe(b"licensed"), "urls": ["https://example.com/layer"]}
    assert client.manifest("a", "v1", layers=[layer])[0].status == 201


def test_index(client: Client) -> None:
    raw = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [describe(manifest(), OCI_MANIFEST)]}
    ).encode()
    put = ("PUT", "/v2/a/manifests/i", raw, {"Content-Type": OCI_INDEX})
    assert client(*put).codes == ["MANIFEST_BLOB_UNKNOWN"]
    client.manifest("a", digest(manifest()))
    assert client(*put).status == 201
    assert client("GET", "/v2/a/manifests/i").headers["Content-Type"] == OCI_INDEX


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", OCI_MANIFEST),
        (b"{", OCI_MANIFEST),
        (b"[]", OCI_MANIFEST),
        (b"{}", OCI_MANIFEST),
        (b"[" * 100_000, OCI_MANIFEST),
        (manifest(), OCI_INDEX),
        (manifest(), "text/plain"),
        (manifest(layers=[{"digest": "sha256:..", "size": 1, "mediaType": "x"}]), OCI_MANIFEST),
    ],
)
def test_invalid(client: Client, raw: bytes, kind: str) -> None:
    client.blob("a", EMPTY)
    reply = client("PUT", "/v2/a/manifests/v1", raw, {"Content-Type": kind})
    assert (reply.status, reply.codes) == (400, ["MANIFEST_INVALID"])


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_oversized(client: Client, chunked: bool) -> None:
    raw = manifest(annotations={"x": "y" * MAX_MANIFEST_SIZE})
    reply = client("PUT", "/v2/a/manifests/v1", iter([raw]) if chunked else raw, {"Content-Type": OCI_MANIFEST})
    assert (reply.status, reply.codes) == (413, ["MANIFEST_INVALID"])


@pytest.mark.parametrize("reference", [".hidden", "..", "%2e%2e", "a%2fb", "x" * 129, "nothere", digest(b"x")])
def test_unknown(client: Client, reference: str) -> None:
    client.manifest("a", "v1")
    for method in ("GET", "HEAD", "DELETE"):
        assert client(method, f"/v2/a/manifests/{reference}").status == 404
    if reference not in ("nothere", digest(b"x")):
        assert client.manifest("a", reference)[0].status in (400, 404)


def test_deleting_a_tag_keeps_the_manifest(client: Client) -> None:
    _, raw = client.manifest("a", "v1")
    client.manifest("a", "v2")
    assert client("DELETE", "/v2/a/manifests/v1").status == 202
    assert client("GET", "/v2/a/manifests/v1").codes == ["MANIFEST_UNKNOWN"]
    assert client("GET", f"/v2/a/manifests/{digest(raw)}").status == 200
    assert client("GET", "/v2/a/tags/list").json == {"name": "a", "tags": ["v2"]}


def test_deleting_a_digest_takes_its_tags(client: Client, root: Path) -> None:
    _, raw = client.manifest("a", "v1")
    client.manifest("a", "v2")
    client.manifest("a", "other", annotations={"x": "y"})
    assert client("DELETE", f"/v2/a/manifests/{digest(raw)}").status == 202
    for reference in ("v1", "v2", digest(raw)):
        assert client("GET", f"/v2/a/manifests/{reference}").status == 404
    assert client("GET", "/v2/a/tags/list").json["tags"] == ["other"]
    assert not (root / "blobs" / digest(raw).replace(":", "/")).exists()


def test_moving_a_tag(client: Client) -> None:
    _, first = client.manifest("a", "v1")
    _, second = client.manifest("a", "v1", annotations={"x": "y"})
    assert client("GET", "/v2/a/manifests/v1").body == second
    assert client("GET", f"/v2/a/manifests/{digest(first)}").body == first


def test_tags_in_pages(client: Client) -> None:
    for tag in ("c", "B", "a", "d", "e"):
        client.manifest("a/b", tag)
    assert client("GET", "/v2/a/b/tags/list").json["tags"] == ["B", "a", "c", "d", "e"]
    seen, path = [], "/v2/a/b/tags/list?n=2"
    while path:
        reply = client("GET", path)
        seen.append(reply.json["tags"])
        link = re.fullmatch(r'<(.+)>; rel="next"', reply.headers.get("Link", ""))
        path = link[1] if link else ""
    assert seen == [["B", "a"], ["c", "d"], ["e"]]
    assert client("GET", "/v2/a/b/tags/list?last=aa").json["tags"] == ["c", "d", "e"]
    nothing = client("GET", "/v2/a/b/tags/list?n=0")
    assert (nothing.json["tags"], "Link" in nothing.headers) == ([], False)


@pytest.mark.parametrize("count", ["x", "-1", "1.5", "9" * 5000, "٣"])
def test_page_size_is_checked(client: Client, count: str) -> None:
    client.manifest("a", "v1")
    reply = client("GET", f"/v2/a/tags/list?n={quote(count)}")
    assert (reply.status, reply.codes) == (400, ["PAGINATION_NUMBER_INVALID"])


def test_page() -> None:
    assert page("abc", last="", count=3) == ("abc"[:0] or ["a", "b", "c"], False)
    assert page("abc", last="a", count=1) == (["b"], True)
    assert page("abc", last="z", count=None) == ([], False)


def test_tags_of_no_repository(client: Client) -> None:
    reply = client("GET", "/v2/a/tags/list")
    assert (reply.status, reply.codes) == (404, ["NAME_UNKNOWN"])


def test_catalog(client: Client) -> None:
    assert client("GET", "/v2/_catalog").json == {"repositories": []}
    for name in ("b", "a/x", "a", "a/manifests/blobs"):
        client.manifest(name, "v1")
    client.blob("only/a/blob", b"x")
    assert client("GET", "/v2/_catalog").json["repositories"] == ["a", "a/manifests/blobs", "a/x", "b"]
    reply = client("GET", "/v2/_catalog?n=2&last=a")
    assert reply.json["repositories"] == ["a/manifests/blobs", "a/x"]
    assert reply.headers["Link"] == '</v2/_catalog?n=2&last=a%2Fx>; rel="next"'
    client("DELETE", f"/v2/b/manifests/{digest(manifest())}")
    assert client("GET", "/v2/_catalog?last=a/x").json["repositories"] == []


def test_referrers(client: Client) -> None:
    subject = describe(manifest(), OCI_MANIFEST)
    path = f"/v2/a/referrers/{subject['digest']}"
    reply, signature = client.manifest(
        "a", "s", subject=subject, artifactType="application/x.sig", annotations={"k": "v"}
    )
    assert (reply.status, reply.headers["OCI-Subject"]) == (201, subject["digest"])
    _, other = client.manifest("a", "o", subject=subject)
    listed = client("GET", path)
    assert (listed.status, listed.headers["Content-Type"]) == (200, OCI_INDEX)
    assert "OCI-Filters-Applied" not in listed.headers
    found = {node["digest"]: node for node in listed.json["manifests"]}
    assert found[digest(signature)]["artifactType"] == "application/x.sig"
    assert found[digest(signature)]["annotations"] == {"k": "v"}
    assert found[digest(signature)]["size"] == len(signature)
    assert found[digest(other)]["artifactType"] == "application/vnd.oci.empty.v1+json"
    assert len(found) == 2

    filtered = client("GET", f"{path}?artifactType={quote('application/x.sig', safe='')}")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert [node["digest"] for node in filtered.json["manifests"]] == [digest(signature)]

    client("DELETE", f"/v2/a/manifests/{digest(signature)}")
    assert [node["digest"] for node in client("GET", path).json["manifests"]] == [digest(other)]


def test_referrers_of_nothing(client: Client) -> None:
    assert client("GET", f"/v2/a/referrers/{digest(b'x')}").json["manifests"] == []
    assert client("GET", "/v2/a/referrers/latest").codes == ["DIGEST_INVALID"]
