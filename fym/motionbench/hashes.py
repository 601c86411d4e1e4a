"""SHA-256 of the frames of every rendered case at 48 x 48, to prove that the data set is the same.

They hold on processors with AVX2 or AVX-512; others round single pixels differently. A change of them needs a
new VERSION; then `python -m fym.motionbench.hashes` writes the table anew.
"""

from __future__ import annotations

import json
from pathlib import Path

from fym.files import write_file
from fym.motionbench.suite import DATASET, VERSION, synthetic

TABLE = Path(__file__).parent / "hashes.json"


def known_hashes() -> dict[str, str]:
    """Name of the case -> hash, as `Case.sha256` computes it."""
    hashes: dict[str, str] = json.loads(TABLE.read_text("utf-8"))["frames"]
    return hashes


def main() -> None:
    frames = {case.name: case.sha256() for case in synthetic()}
    record = {"dataset": DATASET, "version": VERSION, "frames": frames}
    write_file(TABLE, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
