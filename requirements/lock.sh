#!/usr/bin/env bash
# Writes requirements/*.txt: requirements/lock.sh PIP_COMPILE [--upgrade]
# dev comes first and the others start from it, so that all of them agree; hashes are of every platform's files.
# Fetching them takes minutes. Local sources of packages are left out, so that a lock is the same wherever it is made.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PIP_FIND_LINKS PIP_EXTRA_INDEX_URL
export CUSTOM_COMPILE_COMMAND="make lock"

compile() {
    "$@" --quiet --generate-hashes --strip-extras --allow-unsafe \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
}

compile "$@" --output-file requirements/dev.txt requirements/dev.in
for name in runtime engine build; do
    cp requirements/dev.txt "requirements/$name.txt"
    compile "$1" --output-file "requirements/$name.txt" "requirements/$name.in"
done
compile "$@" --output-file bench/requirements.txt bench/requirements.in
