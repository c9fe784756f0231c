"""Publish reports of `kdcache bench fidelity`: results, the plot and the table of `plan --budget`.

kdcache bench fidelity valid.txt test.txt --teacher minilm-mlm --out masked
python benchmarks/causal_teacher.py --out causal --steps 160
kdcache bench fidelity causal/corpus.txt --teacher causal --task causal-lm --out causal-report
python benchmarks/fidelity.py masked/fidelity.json causal-report/fidelity.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kdcache.bench.fidelity_plot import draw
from kdcache.bench.report import load_report, save_report
from kdcache.building.budget import TABLE, make_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Copy both reports, draw them and write the table that the package ships."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masked", type=Path)
    parser.add_argument("causal", type=Path)
    parser.add_argument(
        "--note", default="", help="what a reader must know, such as a busy machine"
    )
    given = parser.parse_args()
    masked, causal = (load_report(path, "fidelity") for path in (given.masked, given.causal))
    for name, report in (("fidelity", masked), ("fidelity_causal", causal)):
        save_report(RESULTS / f"{name}.json", {**report, "note": given.note})
    draw(ROOT / "docs" / "fidelity.png", [masked, causal])
    table = make_table({"masked-lm": masked, "causal-lm": causal})
    (ROOT / "kdcache" / TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
