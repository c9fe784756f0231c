"""The rows of the documentation's tables, each made of a committed result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gain_intervals import told
from page_parts import COMPARISON, Json, Row, best_rival, result


def short(value: float) -> str:
    """Two or three digits, in full."""
    return f"{value:,.0f}" if value >= 1000 else f"{float(f'{value:.3g}'):g}"


def _millions(value: float) -> str:
    return f"{float(f'{value / 1e6:.2g}'):g}M"


def _spread(found: Json, scale: float = 1, digits: int = 1) -> str:
    return f"{scale * found['mean']:.{digits}f} ± {scale * found['sd']:.{digits}f}"


CASES = {
    "shuffled documents": "shuffled documents",
    "shuffled runs": "shuffled runs of neighbours",
    "sequential": "in sequence",
    "one document": "one document at a time",
    "cold cache": "shuffled documents, cold page cache, first batches",
    "cold cache, whole epoch": "the same to the end of the epoch",
}
RIVALS = ("Arrow IPC", "safetensors", "MosaicML streaming", "LitData", "tensorstore")
RIVALS += ("zarr-python, whole chunks", "zarr-python")


def _read() -> dict[tuple[str, str], Json]:
    return {(row["case"], row["reader"]): row for row in result("store")["rows"]}


def _present() -> list[str]:
    return [name for name in RIVALS if any(reader == name for _, reader in _read())]


def readers_head() -> Row:
    first = ("share of a memory map's speed", "kdcache", "first epoch")
    return (*first, *_present(), "kdcache, tokens/s")


def readers_rows() -> Iterator[Row]:
    rows = _read()
    for case, title in CASES.items():
        if ours := rows.get((case, "kdcache")):
            share = f"**{ours['over_memmap']:.2f}**"
            others = [rows.get((case, name)) for name in ("kdcache, first epoch", *_present())]
            speed = _millions(ours["tokens_per_s"])
            yield title, share, *("" if r is None else _share(r) for r in others), speed


def _share(row: Json) -> str:
    share = row["over_memmap"]
    return f"{share:.2f}" if share >= 0.1 else f"{share:.2g}"


BYTES = (
    "logits:topk,k=50",
    "logits:topk-small,k=50",
    "logits:topk-small,k=64",
    "logits:topk-small,k=128",
    "logits:topk-small,k=64,draws=16",
    "logits:sampled,n=50",
    "logits:hidden-head,dtype=int8,group=64",
)


def bytes_rows(name: str) -> Iterator[Row]:
    """Some of our codecs; of the others every setting for 50 ids, and those for 128."""
    for row in result(name)["rows"]:
        signal = row["signal"]
        small = not row["ours"] and (", k=50" in signal or ", k=128, exact" in signal)
        if "bytes_per_row" in row and (signal in BYTES or small):
            yield (
                f"`{signal}`" if row["ours"] else signal,
                short(row["bytes_per_row"]),
                *(_error(row.get(figure)) for figure in ("code_kl", "error", "error_t2")),
            )


def _error(value: float | None) -> str:
    return "" if value is None else "0" if value < 5e-7 else f"{value:.2g}"


def hidden_rows() -> Iterator[Row]:
    for row in result("hidden_fidelity")["rows"]:
        low, high = (100 * bound(row["error_by_layer"]) for bound in (min, max))
        yield (
            f"`{row['signal'].removeprefix('hidden:')}`",
            f"{row['bits_per_value']:.2f}",
            "0" if high == 0 else f"{low:.2g} to {high:.2g}%",
        )


def pays_rows() -> Iterator[Row]:
    words, classes = result("codec_quality_masked_lm"), result("codec_quality_classes")["accuracy"]
    hard = words["test_loss_with_hard_labels"]
    for name, loss in words["test_loss"].items():
        of_classes = classes.get(name.replace("k=64", "k=8"))
        full = name == "logits:dense"
        yield (
            f"`{name}`" + (" (classes: 8)" if of_classes and "k=64" in name else ""),
            short(words["bytes_per_row"][name]),
            _spread(loss, digits=3),
            "" if full else _range(loss["minus_full"]),
            "" if name not in hard else f"{hard[name]['mean']:.3f}",
            "" if of_classes is None else f"{_spread(of_classes, 100)}%",
        )


def _range(values: Sequence[float]) -> str:
    return f"{min(values):+.3f} to {max(values):+.3f}"


def online_rows() -> Iterator[Row]:
    classes, words = result("cached_vs_online_sst2"), result("cached_vs_online_masked_lm")
    yield (
        "largest difference of a logged loss",
        f"{100 * classes['largest_loss_difference']:.1g}%",
        f"{100 * words['largest_loss_difference']:.2g}%",
    )
    for title, how in (("from the cache", "cached"), ("with the teacher in the loop", "online")):
        yield (
            f"result {title}",
            f"{100 * classes['dev_accuracy'][how]['mean']:.1f}% on dev",
            f"perplexity {words['test_perplexity'][how]['mean']:.1f}",
        )
    kl = words["fidelity"]["logits"]
    yield "bytes of a soft label row", "8", f"{words['bytes_per_masked_row']:.0f}"
    yield (
        "mean and largest KL(teacher ‖ decoded), nats",
        "0",
        f"{kl['kl_mean']:.1e} and {kl['kl_max']:.1e}",
    )


def inside_rows() -> Iterator[Row]:
    """Methods that learn from inside the teacher: how far a cache takes their losses."""
    for name, found in result("cached_vs_online_methods")["largest_loss_difference"].items():
        yield (
            f"`{name}`",
            str(found["steps"]),
            *(f"{100 * found[t]:.1g}%" for t in ("fp16", "int8", "for")),
        )


def steps_rows() -> Iterator[Row]:
    for name, title in (("sst2", "SST-2"), ("masked_lm", "WikiText-2, masked")):
        found = result(f"cached_vs_online_{name}_steps")
        seconds = found["step_seconds"]
        waits = [100 * share for share in found["data_wait_share"]]
        yield (
            title,
            *(f"{short(1000 * seconds[how])} ms" for how in ("hard", "cached", "online")),
            f"{found['cached_over_hard_step']:.2f}",
            f"{found['online_over_cached_step']:.2f}",
            f"{found['ceiling']:.2f}",
            f"{max(waits):.1f}%",
        )


def kernels_rows(name: str) -> Iterator[Row]:
    for row in result(name)["rows"]:
        yield _op(row), *_against_rivals(row)


def gpu_kernels_rows() -> Iterator[Row]:
    for row in result("kernels_h100")["rows"]:
        sizes = {"V": row.get("vocab"), "H": row.get("hidden")}
        shown = ", ".join(f"{name}={size}" for name, size in sizes.items() if size)
        yield _op(row), shown, *_against_rivals(row)


def _op(row: Json) -> str:
    return f"`{row['op']}` {row['variant']}".strip()


def _against_rivals(row: Json) -> Row:
    """Milliseconds, share of the limit and memory; the best rival, its memory, and eager torch."""
    best = best_rival(row)
    pages = ", pages kept" if best.get("allocator") == "keeping" else ""
    return (
        short(1000 * row["seconds"]),
        f"{100 * row['share_of_limit']:.0f}%",
        _megabytes(row["peak_bytes"]),
        f"{best['rival']}{pages}: {best['ratio']:.3g}",
        _megabytes(row["rivals"][best["rival"]]["peak_bytes"]),
        _eager(row),
    )


def _eager(row: Json) -> str:
    """Eager torch beside ours, and where its freed pages are kept too."""
    eager = row["rivals"].get("eager")
    if eager is None:
        return ""
    pages = f" ({eager['keeping']['ratio']:.3g})" if "keeping" in eager else ""
    return f"{eager['ratio']:.3g}{pages}"


ALLOCATORS = ("default", "keeping")
GAINS = ("kd over finetune", "hidden over kd")


def domains_rows() -> Iterator[Row]:
    for name, found in result("gains")["corpora"].items():
        for domain, scores in found["domains"].items():
            accuracy = scores["accuracy"]
            yield (
                f"{name}: {domain}",
                f"{found['labels']:,} of {found['training_documents']:,}; {len(found['seeds'])}",
                *(_spread(accuracy[model], 100) for model in ("teacher", *STUDENTS)),
                *(told(scores["gains"][pair]) for pair in GAINS),
            )


HEADLINES = {"reviews": "sentences of reviews", "sst2": "SST-2"}
STUDENTS = ("finetune", "kd", "hidden")


def levels_rows() -> Iterator[Row]:
    for name, title in HEADLINES.items():
        found = result("gains")["corpora"][name]
        home = next(iter(found["domains"].values()))
        for where, scores in (("at home", home), ("away", found["joined"]["away"])):
            yield (
                f"{title}, {where}",
                *(f"{100 * scores['accuracy'][model]['mean']:.1f}" for model in STUDENTS),
                *(told(scores["gains"][pair]) for pair in GAINS),
            )


HEADS = tuple(
    (shape, f"head, {kept}") for shape in ("135M causal", "500M causal") for kept in ALLOCATORS
)


def ways_rows() -> Iterator[Row]:
    shapes = result("steps")["shapes"]
    timed = [shapes[shape][head]["over_plain"] for shape, head in HEADS]
    for way in sorted(timed[0], key=timed[-1].__getitem__):
        yield way, *(f"{ratios[way]:.2f}" for ratios in timed)


def ship_rows() -> Iterator[Row]:
    seen: set[str] = set()
    for student, report in result("ship")["students"].items():
        for name, row in report["models"].items():
            who = name.replace("_", " ") if name.startswith("teacher") else f"{student}, {name}"
            if who not in seen:
                seen.add(who)
                yield (
                    who,
                    _megabytes(row["bytes"]),
                    *(f"{row[figure]:.2g}" for figure in ("p50_ms", "p95_ms")),
                    _megabytes(row["peak_bytes"]),
                    f"{100 * row['accuracy']:.1f}%",
                    f"{100 * row['agreement']:.1f}%" if "agreement" in row else "",
                )


def _megabytes(size: int) -> str:
    return f"{float(f'{size / 1e6:.3g}'):g} MB"


def others_rows() -> Iterator[Row]:
    for project, cells in result(COMPARISON)["projects"].items():
        for name, cell in cells.items():
            read = ", ".join(
                cell[field] for field in ("file", "version", "date") if cell.get(field)
            )
            yield project, name.replace("_", " "), cell["value"].replace("|", "\\|"), read


def questions_rows() -> Iterator[Row]:
    for name, question in result(COMPARISON)["columns"].items():
        yield name.replace("_", " "), question
