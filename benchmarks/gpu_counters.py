"""What the GPU counts while an op runs, where NVIDIA's profiler `ncu` is there: one kernel."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from gpu_checks import WARM_UP, case_of, warmed
from gpu_run import Json, Session

COUNTED = ("topk_kl", "T=1", 30522)
ROWS, KERNEL = 8192, "rows_kernel"
SECONDS = 60.0
COUNTERS = {
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "dram__bytes_read.sum": "bytes_read",
    "dram__bytes_write.sum": "bytes_written",
    "lts__t_sector_hit_rate.pct": "l2_hit_percent",
    "gpu__time_duration.sum": "nanoseconds",
}
PLACES = ("/usr/local/cuda*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")


def profiler() -> str | None:
    """Where ncu is."""
    found = (str(path) for place in PLACES for path in Path("/").glob(place.lstrip("/")))
    return shutil.which("ncu") or next(found, None)


def counted(session: Session, op: str, variant: str, vocab: int) -> Json:
    """Occupancy and bytes of one run of an op's kernel; `absent` where nothing can count them."""
    ncu = profiler()
    if ncu is None:
        return {"absent": "ncu is not installed: it comes with CUDA's toolkit"}
    line = [ncu, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    line += ["--kernel-name", KERNEL, "--launch-skip", str(WARM_UP), "--launch-count", "1"]
    line += ["--metrics", ",".join(COUNTERS)]
    line += [sys.executable, __file__, op, variant, str(vocab)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"absent": f"ncu did not end within {SECONDS:.0f} s"}
    found = counts(done.stdout)
    if not found:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        return {"absent": f"ncu counted nothing: {''.join(last)[:200]}"}
    size = session.size(ROWS, vocab)
    return {**found, "least_bytes": case_of(op, variant).bytes(size, torch.bfloat16.itemsize)}


def counts(printed: str) -> dict[str, float]:
    """The counters in what ncu prints: below its own lines, names, units and a row a kernel."""
    lines = [line for line in printed.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        return {}
    names, _, values = csv.reader(lines[:3])
    found = dict(zip(names, values, strict=False))
    return {
        short: float(found[name].replace(",", ""))
        for name, short in COUNTERS.items()
        if found.get(name)
    }


def main() -> None:
    """Run an op as ncu is to see it: often enough to be compiled, and once more."""
    op, variant, vocab = sys.argv[1:]
    warmed(Session(Path(), "cuda"), case_of(op, variant), int(vocab), ROWS)()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
