#!/usr/bin/env bash
# Makes the real peers that tests/peers talks to, and says which are missing. `--path` only prints the folder of the
# built ones. With TONNAGE_REQUIRE_PEERS=1, a missing peer is a failure.
#
# oras and crane are built from source, at the versions that tools/go.mod pins; go.sum holds their hashes. That needs
# the Go that go.mod names (or Go 1.21, which fetches it by itself); the one in Debian 12, 1.19, is too old.
# docker-registry and skopeo are Debian's packages, which root can install here.
set -euo pipefail

tools=$(cd "$(dirname "$0")/tools" && pwd)
hash=$(cat "$tools/go.mod" "$tools/go.sum" | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/tonnage/peers/$hash"
missing=()

if [ "${1:-}" = --path ]; then
    echo "$folder"
    exit
fi

say() { echo "peers: $*" >&2; }

# Built beside its place and moved there, so that what is there is whole.
build() { # NAME PACKAGE
    local name=$1 package=$2 made
    [ -x "$folder/$name" ] && return
    say "building $name"
    mkdir -p "$folder"
    made=$(mktemp -d "$folder/.build-XXXXXX")
    if (cd "$tools" && GOTOOLCHAIN="${GOTOOLCHAIN:-auto}" CGO_ENABLED=0 go build -mod=readonly -trimpath \
        -o "$made/$name" "$package"); then
        mv "$made/$name" "$folder/$name"
    else
        missing+=("$name (it did not build with $(go version | cut -d' ' -f3))")
    fi
    rm -rf "$made"
}

if command -v go >/dev/null; then
    build oras oras.land/oras/cmd/oras
    build crane github.com/google/go-containerregistry/cmd/crane
else
    for name in oras crane; do
        [ -x "$folder/$name" ] || command -v "$name" >/dev/null || missing+=("$name (there is no Go to build it)")
    done
fi

wanted=()
for name in docker-registry skopeo; do
    command -v "$name" >/dev/null || wanted+=("$name")
done
if [ ${#wanted[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${wanted[*]}"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends "${wanted[@]}"; } >&2 || true
fi
for name in "${wanted[@]}"; do
    command -v "$name" >/dev/null || missing+=("$name (apt-get install $name)")
done

for peer in "${missing[@]}"; do
    say "missing: $peer"
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "${TONNAGE_REQUIRE_PEERS:-}" != 1 ] || exit 1
    say "the tests that need them are skipped; TONNAGE_REQUIRE_PEERS=1 makes that a failure"
else
    say "all are there; the built ones in $folder"
fi
