"""Publish reports of `kdcache bench fidelity`: results, the plot and the table of `plan --budget`.

    kdcache bench fidelity valid.txt test.txt --teacher minilm-mlm --out masked
    python benchmarks/causal_teacher.py --out causal --steps 160
    kdcache bench fidelity causal/corpus.txt --teacher causal --task causal-lm --out causal-report
    python benchmarks/fidelity.py masked/fidelity.json causal-report/fidelity.json

A teacher with a large vocabulary, from `causal_teacher.py --tokenizer`, has a table of its own:

    python benchmarks/fidelity.py --wide wide-report/fidelity.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kdcache.bench.fidelity_plot import draw
from kdcache.bench.report import load_report, save_report
from kdcache.building.budget import TABLE, make_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Copy the reports; draw the masked and the causal one, and write the table that ships."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masked", type=Path, nargs="?")
    parser.add_argument("causal", type=Path, nargs="?")
    parser.add_argument("--wide", type=Path)
    parser.add_argument(
        "--note", default="", help="what a reader must know, such as a busy machine"
    )
    given = parser.parse_args()
    found = {
        name: load_report(path, "fidelity")
        for name, path in (
            ("fidelity", given.masked),
            ("fidelity_causal", given.causal),
            ("fidelity_wide", given.wide),
        )
        if path is not None
    }
    for name, report in found.items():
        save_report(RESULTS / f"{name}.json", {**report, "note": given.note})
    if "fidelity_causal" in found:
        publish(found["fidelity"], found["fidelity_causal"])


def publish(masked: dict[str, Any], causal: dict[str, Any]) -> None:
    """Draw both reports and write the table that the package ships."""
    draw(ROOT / "docs" / "fidelity.png", [masked, causal])
    table = make_table({"masked-lm": masked, "causal-lm": causal})
    (ROOT / "kdcache" / TABLE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
