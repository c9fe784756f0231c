"""What train and evaluate tell a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdcache_cli.output import both, print_fields, print_table, print_title

LISTED = 40  # slices that a person still reads

SCORES = {
    "accuracy_interval": "accuracy, 95% interval",
    "calibration_error": "expected calibration error",
    "cross_entropy": "cross-entropy, nats",
    "cross_entropy_interval": "cross-entropy, 95% interval",
    "pearson_interval": "pearson, 95% interval",
    "data_wait_share": "waiting for data, share of step time",
    "documents_per_s": "documents/s",
    "teacher_rows.documents": "documents the cache has too",
    "teacher_rows.agreement": "agreement with the teacher there",
    "teacher_rows.divergence": "KL(teacher ‖ model) there, nats",
}


def print_scores(report: Mapping[str, Any]) -> None:
    """Scores of a model, those of the teacher beside them where it was run too."""
    teacher = report.get("teacher") or {}
    own = {name: value for name, value in report.items() if name not in ("teacher", "slices")}
    rows = [(_label(name), value, teacher.get(name, "")) for name, value in _flat(own)]
    if teacher:
        print_table(("", "model", "teacher"), rows, right=(1, 2))
    else:
        print_fields({label: value for label, value, _ in rows})
    for column, told in report.get("slices", {}).items():
        _print_slices(column, told)


def _print_slices(column: str, told: Mapping[str, Any]) -> None:
    from kdcache.evaluation.told import header_of, rows_of, worst_of

    header, slices = header_of(column, dict(told)), len(told["rows"])
    print_title(f"by {column}")
    print_table(header, rows_of(dict(told), LISTED), right=range(1, len(header)))
    for line in worst_of(column, dict(told)):
        print(line)
    if slices > LISTED:
        print(f"of {slices:,} slices the {LISTED} that score worst are listed; --json has all")


def _label(name: str) -> str:
    if name in SCORES:
        return SCORES[name]
    outer, _, last = name.rpartition(".")
    label = SCORES.get(last, last.replace("_", " "))
    return f"{outer.replace('.', ', ')}: {label}" if outer else label


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Any nested report as a name and a value per line; how weights were chosen as a table."""
    chosen = metrics.get("dev")
    plain = {name: value for name, value in metrics.items() if name != "dev"}
    print_fields({_label(name): _value(name, value) for name, value in _flat(plain)})
    if chosen is not None:
        _print_choice(chosen)


def _print_choice(dev: Mapping[str, Any]) -> None:
    """The student's score on the dev set at every point, the teacher's below."""
    best, teacher = dev["best"], dev["teacher"]
    rows = [
        (point["step"], point["epoch"], point["value"], "kept" if point == best else "")
        for point in dev["points"]
    ]
    if teacher is not None:
        about = "about, by " if teacher.get("estimate") else ""
        rows.append(("teacher", "", teacher["value"], f"{about}{teacher['source']}"))
    for name, head in dev.get("heads", {}).items():
        rows.append((name, "", head["value"], f"{head['metric']} of the weights that are kept"))
    metric = SCORES.get(dev["metric"], dev["metric"])
    print_title(f"dev set: {dev['documents']:,} documents, {dev['source']}")
    print_table(("step", "epoch", metric, ""), rows, right=(0, 1, 2))


def _value(name: str, value: Any) -> Any:
    last = name.rpartition(".")[2]
    if value is not None and last.endswith("bytes"):
        return both(value)
    return f"{value:.2%}" if last.endswith("share") else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            numbered = {str(number): one for number, one in enumerate(value, 1)}
            yield from _flat(numbered, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
