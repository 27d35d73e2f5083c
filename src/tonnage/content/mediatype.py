"""The media types and annotation keys that Tonnage writes or reads, each with its source."""

from __future__ import annotations

# OCI image-spec 1.1
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"

# Docker image manifest v2, schema 2
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_IMAGE_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

# CNCF ModelPack model-spec 0.0.7
MODELPACK_MANIFEST = "application/vnd.cncf.model.manifest.v1+json"
MODELPACK_CONFIG = "application/vnd.cncf.model.config.v1+json"
MODELPACK_LAYER = "application/vnd.cncf.model.{kind}.v1.{packaging}"
"""`kind` is weight, weight.config, doc, code or dataset; `packaging` is raw, tar, tar+gzip or tar+zstd."""

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_MANIFEST_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
IMAGE_CONFIG_TYPES = frozenset({OCI_IMAGE_CONFIG, DOCKER_IMAGE_CONFIG})

# Annotations: OCI image-spec annotations.md, ORAS, ModelPack, ours
TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"
ORAS_UNPACK = "io.deis.oras.content.unpack"
ORAS_DIGEST = "io.deis.oras.content.digest"
MODELPACK_FILEPATH = "org.cncf.model.filepath"
CNAI_FILEPATH = "org.cnai.model.filepath"
TONNAGE_FILES = "dev.tonnage.files"
"""What a layer holds: JSON `{"layer": digest, "files": [{"path", "size", "offset"}, ...]}`, bound to that layer."""


def is_index(media_type: str) -> bool:
    """Whether content of this type lists manifests."""
    return media_type in INDEX_TYPES


def is_manifest(media_type: str) -> bool:
    """Whether registries keep content of this type under `/manifests/`: an index or a manifest."""
    return media_type in INDEX_TYPES or media_type in MANIFEST_TYPES


def compression(media_type: str) -> str:
    """How a layer's bytes are compressed: `none`, `gzip` or `zstd`."""
    for suffix, name in (("+gzip", "gzip"), (".gzip", "gzip"), ("+zstd", "zstd"), (".zstd", "zstd")):
        if media_type.endswith(suffix):
            return name
    return "none"
