"""The card of a shipped model: what it is, how to run it, what was measured."""

from __future__ import annotations

from pathlib import Path

from kdcache.labels import LABEL_KINDS
from kdcache.manifest import Json
from kdcache.rendering import Table
from kdcache.shipping.folder import CARD

USAGE = """```
pip install onnxruntime tokenizers numpy
python infer.py {words}
```

```python
from infer import Model

Model().predict({call})
```"""
ONE = {"words": '"a text"', "call": '["a text", "another text"]'}
TWO = {"words": '"a text" "its pair" --pair', "call": '["a text"], ["its pair"]'}
NAMES = {
    "fp32": "float32",
    "int8": "int8",
    "teacher_fp32": "teacher, float32",
    "teacher_int8": "teacher, int8",
}
FIGURES = ("accuracy", "micro_f1", "macro_f1", "pearson", "agreement")


def write_card(folder: Path, name: str, report: Json) -> None:
    """Write the card of the model in `folder`, in Markdown."""
    sections = [f"# {name}", _summary(report), "## How to run it"]
    sections.append(USAGE.format(**(TWO if report["texts"] == 2 else ONE)))
    if "models" in report:
        sections += ["## Measured", _about(report), _table(report).markdown()]
        sections += [note[:1].upper() + note[1:] + "." for note in report["notes"]]
    (folder / CARD).write_text("\n\n".join(sections) + "\n", "utf-8")


def _summary(report: Json) -> str:
    what = f"A {LABEL_KINDS[report['problem']].called}"
    labels = f": {', '.join(report['labels'])}" if len(report["labels"]) > 1 else ""
    kind = "weights and embeddings in 8 bits" if report["int8"] else "weights in float32"
    fidelity = report["fidelity"]
    return (
        f"{what}{labels}: {report['parameters']:,} parameters, {kind}, "
        f"{report['model_bytes'] / 1e6:.1f} MB of ONNX, texts of up to {report['max_length']} "
        f"tokens. In float32 its logits differ from those of the torch model by "
        f"{fidelity['difference']:.1g} at most, on {fidelity['texts']} texts alone and in padded "
        "batches. Made by `kdcache ship`."
    )


def _about(report: Json) -> str:
    return (
        f"On {report['documents']:,} documents of `{report['file']}`, one at a time. Latency is "
        f"that of {report['calls']} calls with one text each of those lengths on one thread, "
        f"{report['timed']}; memory is that of a process of its own. Intervals are of 95%."
    )


def _table(report: Json) -> Table:
    models = report["models"]
    shown = [name for name in FIGURES if name in models["fp32"]]
    rows = [
        (
            NAMES[name],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p95_ms']:.2f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            *(_score(row, figure) for figure in shown),
        )
        for name, row in models.items()
    ]
    return Table(("", "MB", "p50, ms", "p95, ms", "peak MB", *shown), tuple(rows))


def _score(row: Json, name: str) -> str:
    if row[name] is None:
        return ""
    low_high = row.get(f"{name}_interval")
    return f"{row[name]:.3f}" + (f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else "")
