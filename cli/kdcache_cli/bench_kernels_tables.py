"""What `kdcache bench kernels` prints: tables that a terminal of 100 columns has room for.

What all rows of an op have in common, dtype and sizes most of all, is said once above them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcache_cli.output import print_fields, print_table, print_title, show, size

Json = dict[str, Any]

THOUSAND = 1000
SOFTWARE = ("torch", "numba", "triton", "liger-kernel")
KEPT = "*"
SHORT = {"rows": "N", "vocab": "V", "k": "K", "hidden": "H", "dtype": ""}


def wrong(row: Json) -> str:
    """Why an op was not timed."""
    outputs = ", ".join(
        f"{name} by {_off(found)} ({found['allowed']:.2g} allowed)"
        for name, found in row["wrong"].items()
    )
    return f"{_title(row)} is wrong and was not timed: off float64 in {outputs}"


def _off(found: Json) -> str:
    return "something not finite" if found["error"] is None else f"{found['error']:.2g}"


def _title(row: Json) -> str:
    from kdcache.bench.kernels import title

    return title(row)


def print_kernels(report: Json) -> None:
    """Print a report: the machine, every case, predictions, rivals and goals."""
    machine, settings, rows = report["machine"], report["settings"], report["rows"]
    on_cpu = report["device"] == "cpu"
    print_fields(
        {
            "device": machine["processor"] if on_cpu else machine["gpu"],
            "threads": machine["threads"] if on_cpu else None,
            "software": ", ".join(f"{n} {machine[n]}" for n in SOFTWARE if n in machine),
            "ids a row": settings["k"],
            "sizes": "; ".join(_sizes(rows)) or None,
            "left out": "; ".join(report["left_out"]) or None,
        }
    )
    if not rows:
        return
    print()
    print_table(
        ("kernel", "ms", "reached", "of limit", "memory", "best rival", "takes"),
        [(name, *_row(row)) for name, row in zip(_names(rows), rows, strict=True)],
        right=(1, 2, 3, 4, 6),
    )
    if any(row["best"] and row["best"]["allocator"] == "keeping" for row in rows):
        print(f"{KEPT} where freed pages are kept, which is where this rival does best")
    _print_predicted(report)
    _print_rivals(rows)
    _print_goals(report)


def _of_op(rows: Sequence[Json]) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for row in rows:
        found.setdefault(row["op"], []).append(row)
    return found


def _fixed(rows: Sequence[Json]) -> dict[str, str]:
    """What all of some rows have in common, by name, as it is written."""
    first = rows[0]
    return {
        name: _written(name, first)
        for name in SHORT
        if name in first and len({row.get(name) for row in rows}) == 1
    }


def _written(name: str, row: Json) -> str:
    return f"{SHORT[name]}={row[name]}" if SHORT[name] else str(row[name])


def _sizes(rows: Sequence[Json]) -> list[str]:
    """The common sizes, and the ops that have them."""
    found: dict[str, list[str]] = {}
    for op, some in _of_op(rows).items():
        sizes = [text for name, text in _fixed(some).items() if name != "k"]
        found.setdefault(" ".join(sizes), []).append(op)
    return [f"{', '.join(ops)}: {sizes}" for sizes, ops in found.items() if sizes]


def _names(rows: Sequence[Json], *, op: bool = True) -> list[str]:
    """What tells a row from the others of its op, after the op's name."""
    fixed = {name: _fixed(some).keys() | {"k"} for name, some in _of_op(rows).items()}
    return [
        " ".join(
            filter(
                None,
                (
                    row["op"] if op else "",
                    row["variant"],
                    *(_written(n, row) for n in SHORT if n in row and n not in fixed[row["op"]]),
                ),
            )
        )
        for row in rows
    ]


def _print_predicted(report: Json) -> None:
    """The floors on cards that are not here, if any were asked for."""
    names = [card["name"] for card in report.get("predicted", ())]
    if not names:
        return
    print_title("Predicted, not measured: the least milliseconds on a card that is not here")
    print_table(
        ("kernel", *(head for name in names for head in (name, "ruled by"))),
        [
            (kernel, *(cell for name in names for cell in _floor(row, name)))
            for kernel, row in zip(_names(report["rows"]), report["rows"], strict=True)
        ],
        right=range(1, 2 * len(names), 2),
    )
    for card in report["predicted"]:
        rates = ", ".join(f"{rate / 1e12:.3g} {kind}" for kind, rate in card["products"].items())
        print(f"{card['name']}: {card['copy'] / 1e12:.3g} TB/s copied, TFLOP/s {rates}")
        print(f"  {card['source']}")


def _floor(row: Json, name: str) -> tuple[str, str]:
    floor = row["predicted"][name]
    return show(THOUSAND * floor["seconds"]), floor["bound"]


def _print_goals(report: Json) -> None:
    missed = [goal for goal in report["goals"] if not goal["met"]]
    print_title(
        f"Goals, times the best rival under either allocator: met by "
        f"{len(report['goals']) - len(missed)} of {len(report['goals'])}"
    )
    for goal in missed:
        print(f"not met: {goal['goal']}: {goal['value']:.2f}, goal {goal['bound']:g}")


def _row(row: Json) -> tuple[str, ...]:
    return (
        show(THOUSAND * row["seconds"]),
        _rate(row, row["seconds"]),
        f"{row['share_of_limit']:.0%}",
        _memory(row),
        *_best(row["best"]),
    )


def _best(best: Json | None) -> tuple[str, str]:
    if best is None:
        return "-", "-"
    where = KEPT if best["allocator"] == "keeping" else ""
    return f"{best['rival']}{where}", f"{best['ratio']:.2f}x"


def _rate(row: Json, seconds: float) -> str:
    if row["bound"] == "copy":
        return f"{size(int(row['bytes'] / seconds))}/s"
    rate = row["flops"] / seconds / 1e9
    return f"{rate:.3g} GFLOP/s" if rate < THOUSAND else f"{rate / THOUSAND:.3g} TFLOP/s"


def _memory(figures: Json) -> str:
    return "-" if figures["peak_bytes"] is None else size(figures["peak_bytes"])


def _print_rivals(rows: list[Json]) -> None:
    """A table an op: how long each takes and the memory it needs; then who was not timed."""
    for op, some in _of_op(rows).items():
        timed = [n for row in some for n, found in row["rivals"].items() if "seconds" in found]
        names = list(dict.fromkeys(timed))
        if names:
            print_title(
                f"Rivals of {op}: times as long (and where freed pages are kept), their memory"
            )
            print_table(
                ("", *names),
                [
                    (name or op, *(_rival(row["rivals"].get(rival, {})) for rival in names))
                    for name, row in zip(_names(some, op=False), some, strict=True)
                ],
                right=range(1, len(names) + 1),
            )
    others = [
        f"{name}: {why}"
        for row in rows
        for name, found in row["rivals"].items()
        if (why := _not_timed(row, found))
    ]
    if others:
        print_title("Not timed")
        print("\n".join(dict.fromkeys(others)))


def _rival(found: Json) -> str:
    if "seconds" not in found:
        return "-"
    pages = f" ({found['keeping']['ratio']:.3g})" if "keeping" in found else ""
    return f"{found['ratio']:.3g}{pages}\n{_memory(found)}"


def _not_timed(row: Json, found: Json) -> str | None:
    if "absent" in found:
        return str(found["absent"])
    if "failed" in found:
        return f"failed on {_title(row)}: {found['failed']}"
    if "wrong" in found:
        offs = ", ".join(f"{name} off by {_off(off)}" for name, off in found["wrong"].items())
        return f"wrong on {_title(row)}: {offs}"
    return None
