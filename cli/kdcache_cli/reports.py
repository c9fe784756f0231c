"""What plan, build and inspect tell a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcache.building.words import fidelity_rows, signal_text
from kdcache.tasks import TASKS
from kdcache_cli.output import bar, both, print_fields, print_table, print_title, size

Json = dict[str, Any]

NAMED_CLASSES = 6


def print_plan(plan: Json) -> None:
    """A plan's counts and its histogram of lengths."""
    print_fields(
        {
            "task": plan["task"],
            "tokenizer": plan["tokenizer"],
            "text columns": plan["text_columns"],
            "label column": _labels(plan),
            "documents": _documents(plan),
            "classes": _classes(plan["classes"]),
            "tokens": plan["tokens"],
            TASKS[plan["task"]].selected or "masked positions": plan["masked"] or None,
            "truncated": f"{plan['truncated']:,} documents, to {plan['max_length']} tokens",
            "parts": f"{plan['parts']:,} of {plan['part_tokens']:,} tokens",
            "plan": plan["sha256"][:16],
        }
    )
    print_title("Length of documents")
    most = max(count for _, _, count in plan["length_histogram"])
    print_table(
        ("tokens", "documents", ""),
        [(f"{low}-{high}", n, bar(n / most)) for low, high, n in plan["length_histogram"]],
        right=(0, 1),
    )


def _documents(plan: Json) -> str:
    rows, documents = plan["corpus_documents"], plan["documents"]
    return f"{documents:,}" if rows == documents else f"{documents:,} (from {rows:,} in the corpus)"


def _labels(plan: Json) -> str | None:
    if not TASKS[plan["task"]].labelled:
        return None
    if not plan["labelled"]:
        return "none: only losses without hard labels can be trained"
    column = plan["label_column"] or "(unnamed)"
    column = column if isinstance(column, str) else ", ".join(column)
    return f"{column} ({plan['problem']}; {plan['labelled']:,} of {plan['documents']:,} labelled)"


def _classes(names: list[str] | None) -> str | None:
    if not names:
        return None
    more = ", ..." if len(names) > NAMED_CLASSES else ""
    return f"{len(names)}: {', '.join(names[:NAMED_CLASSES])}{more}"


def print_bytes(estimate: Json) -> None:
    """Bytes of the arrays of a cache that is not there yet: exact, or estimated where they are."""
    print_title("Size of the cache")
    exact = not estimate["estimates"]
    rows: list[tuple[str, str, Any]] = [
        (name, size(n), n) for name, n in estimate["arrays"].items()
    ]
    rows += [
        (name, f"{size(least)} to {size(most)}", "estimate")
        for name, (least, most) in estimate["estimates"].items()
    ]
    least, most = estimate["least"], estimate["total"]
    total = (size(most), most) if exact else (f"{size(least)} to {size(most)}", "estimate")
    print_table(("array", "size", "bytes"), [*rows, ("total", *total)], right=(1, 2))
    print("The tokenizer's files and the metadata come on top.")
    for name, forwards in estimate.get("forwards", {}).items():
        print(f"{name} is a gradient: a build takes about {forwards} of the teacher's forwards.")
    for way in estimate.get("smaller", []):
        print(
            f"{size(way['bytes'])} less in place of {', '.join(way['signals'])}:",
            *(f"--signal {text}" for text in way["instead"]),
            f"({way['note']})",
        )


def print_proposals(budget: int, proposals: list[Json]) -> None:
    """Signals that fit a budget, the truest first, and the first of them as options."""
    print_title(f"What fits {size(budget)}, by the errors of `kdcache bench fidelity`")
    rows = [
        (
            " ".join(proposal["signals"]),
            f"at most {size(proposal['bytes'])}",
            100 * proposal["logits_error"],
            None if proposal["hidden_error"] is None else 100 * proposal["hidden_error"],
            proposal["note"],
        )
        for proposal in proposals
    ]
    header = ("signals", "size", "gradient error, %", "hidden error, %", "")
    print_table(header, rows, right=(1, 2, 3))
    print("Take the first with:", *(f"--signal {text}" for text in proposals[0]["signals"]))


def print_cache(cache: Json) -> None:
    """What made a cache, its arrays, its fidelity and whether all of it is there."""
    teacher = cache["teacher"]
    print_fields(
        {
            "cache": cache["path"],
            "state": _state(cache["completeness"]),
            "size": both(cache["total_bytes"]),
            "teacher": f"{teacher['name']} ({teacher['class']})",
            "further teachers": cache["further_teachers"] or None,
            "parameters": teacher["parameters"],
            "weights": teacher["weights_sha256"][:16],
            "forward": f"{teacher['dtype']}, {teacher['attention']} attention",
            "made with": ", ".join(f"{name} {v}" for name, v in cache["software"].items()),
            **{f"signal {name}": signal_text(s) for name, s in cache["signals"].items()},
            **{
                f"{name} is newer": f"it has {what}"
                for name, what in cache.get("newer", {}).items()
            },
        }
    )
    _print_arrays(cache["arrays"])
    _print_fidelity(cache["fidelity"])
    if cache["files"]:
        print_title("Files kept")
        rows = [(name, size(n), n) for name, n in cache["files"].items()]
        print_table(("file", "size", "bytes"), rows, right=(1, 2))
    print_title("Plan")
    print_plan(cache["plan"])


def _print_arrays(arrays: list[Json]) -> None:
    print_title("Arrays")
    rows = [
        (a["name"], " × ".join(map(str, a["shape"])), a["dtype"], size(a["bytes"]), a["bytes"])
        for a in arrays
    ]
    print_table(("array", "shape", "dtype", "size", "bytes"), rows, right=(3, 4))


def _state(completeness: Json) -> str:
    parts, committed = completeness["parts"], completeness["committed"]
    if completeness["complete"]:
        return f"complete, {parts:,} of {parts:,} parts"
    return f"incomplete, {committed:,} of {parts:,} parts: run the same `kdcache build` again"


def _print_fidelity(fidelity: Mapping[str, Json]) -> None:
    print_title("Fidelity")
    if not fidelity:
        print("not known before the cache is complete")
        return
    print_table(("signal", "measure", "value", ""), fidelity_rows(fidelity), right=(2,))
