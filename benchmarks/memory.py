"""Memory of a build, and of as many steps of training, at two corpus sizes.

    python benchmarks/memory.py --sst2 sst2 --teacher minilm-sst2

What a run keeps has to stay the same; what a batch of its longest texts needs, comes on top.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import save

SIZES = (4_000, 32_000)

RUN = """
import json, os, sys
from pathlib import Path
from kdcache.building.builder import build
from kdcache.building.capture import Capture
from kdcache.memory import peak_rss_bytes
from kdcache.training.train import train
what, data, teacher, out, limit = sys.argv[1:]
after, part = [], Capture.part
def noting(*given):
    rows = part(*given)
    resident = Path("/proc/self/statm").read_text("ascii").split()[1]
    after.append(int(resident) * os.sysconf("SC_PAGE_SIZE"))
    return rows
Capture.part = noting
if what == "build":
    build(data, teacher=teacher, task="text-classification", out=out, limit=int(limit),
          signals=["logits:dense", "hidden:layers=3-6,positions=cls"], part_tokens=16384)
else:
    train(out, recipe="kd", out=out + ".student", init_from_teacher=(3, 6),
          overrides=["training.max_steps=600", "training.save_strategy=no"])
print(json.dumps([peak_rss_bytes(), after]))
"""


def measure(data: Path, teacher: Path, out: Path, documents: int) -> dict[str, Any]:
    """Peak resident bytes of a build and of 600 steps, each in a process of its own.

    Of a build also the bytes resident after each part: what it keeps beside a batch's forward.
    """
    row: dict[str, Any] = {"documents": documents}
    for what in ("build", "train"):
        command = [sys.executable, "-c", RUN, what, str(data), str(teacher)]
        command += [str(out / f"{documents}.zarr"), str(documents)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row[f"{what}_peak_bytes"], after = json.loads(done.stdout.splitlines()[-1])
        if what == "build":
            row["build_bytes_after_parts"] = after
    return row


def main() -> None:
    """Run and write results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    args = parser.parse_args()
    rows = []
    for documents in SIZES:
        rows.append(measure(args.sst2 / "train.tsv", args.teacher, args.out, documents))
        print(rows[-1], flush=True)
    save("memory", {"part_tokens": 16384, "sizes": rows})


if __name__ == "__main__":
    main()
