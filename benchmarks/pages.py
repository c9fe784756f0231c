"""Tables of the documentation, made of the results committed here.

    python benchmarks/pages.py    writes them anew into the pages

A table is found in its page by its first line. tests/test_figures.py holds every page against these
tables, and the figures in its sentences against CLAIMS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
Json = dict[str, Any]
Row = Sequence[str]


@cache
def result(name: str) -> Json:
    """A committed result."""
    found: Json = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


@dataclass(frozen=True)
class Table:
    page: str
    head: Row
    rows: Callable[[], Iterator[Row]]

    @property
    def first(self) -> str:
        return _line(self.head)

    def text(self) -> str:
        lines = [self.first, _line(["---"] * len(self.head)), *map(_line, self.rows())]
        return "\n".join(lines)


def _line(cells: Row) -> str:
    return plain(f"| {' | '.join(cells)} |".replace("|  |", "| |"))


def plain(text: str) -> str:
    """Small numbers as people write them: 8e-5."""
    return re.sub(r"(?<=\de-)0", "", text)


def short(value: float) -> str:
    """Two or three digits, in full."""
    return f"{value:,.0f}" if value >= 1000 else f"{float(f'{value:.3g}'):g}"


def _millions(value: float) -> str:
    return f"{float(f'{value / 1e6:.2g}'):g}M"


def _spread(found: Json, scale: float = 1, digits: int = 1) -> str:
    return f"{scale * found['mean']:.{digits}f} ± {scale * found['sd']:.{digits}f}"


def _readers() -> Iterator[Row]:
    rows = {(row["case"], row["reader"]): row for row in result("store")["rows"]}
    first = "kdcache, first epoch"
    for case, title in (
        ("shuffled documents", "shuffled documents"),
        ("shuffled runs", "shuffled runs of neighbours"),
        ("sequential", "in sequence"),
        ("one document", "one document at a time"),
        ("cold cache", "shuffled documents, cold page cache"),
    ):
        anew = rows.get((case, first))
        ours = rows[case, "kdcache"]
        yield (
            title,
            f"**{ours['over_memmap']:.2f}**",
            "" if anew is None else f"{anew['over_memmap']:.2f}",
            *(f"{rows[case, name]['over_memmap']:.2g}" for name in READERS),
            _millions(ours["tokens_per_s"]),
        )


READERS = ("Arrow IPC", "safetensors", "tensorstore", "zarr-python")

BYTES = (
    "logits:topk,k=50",
    "logits:topk-small,k=50",
    "DistillKit, k=50, exact 1, 3 terms",
    "Megatron-LM, k=50",
    "int32 + fp16, k=50",
    "logits:topk-small,k=128",
    "DistillKit, k=128, exact 16, 6 terms",
    "logits:topk-small,k=64",
    "logits:topk-small,k=64,draws=16",
    "logits:sampled,n=50",
    "logits:hidden-head,dtype=int8,group=64",
)


def _bytes() -> Iterator[Row]:
    rows = {row["signal"]: row for row in result("fidelity")["rows"]}
    for name in BYTES:
        row = rows[name]
        yield (
            f"`{name}`" if row["ours"] else name,
            short(row["bytes_per_row"]),
            *(_error(row.get(figure)) for figure in ("code_kl", "error", "error_t2")),
        )


def _error(value: float | None) -> str:
    return "" if value is None else "0" if value < 5e-7 else f"{value:.2g}"


def _hidden() -> Iterator[Row]:
    for row in result("hidden_fidelity")["rows"]:
        low, high = (100 * bound(row["error_by_layer"]) for bound in (min, max))
        yield (
            f"`{row['signal'].removeprefix('hidden:')}`",
            f"{row['bits_per_value']:.2f}",
            "0" if high == 0 else f"{low:.2g} to {high:.2g}%",
        )


def _pays() -> Iterator[Row]:
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


CORPORA = {
    "docstrings": "docstrings of Python, by package",
    "banking77": "Banking77",
}


def _gains() -> Iterator[Row]:
    for name, title in CORPORA.items():
        found = result("distillation_gain")[name]
        settings, accuracy = found["settings"], found["accuracy"]
        by_seed = [[100 * v for v in run["gain"]["interval"]] for run in found["runs"]]
        yield (
            title,
            f"{settings['labels']} of {found['training_sentences']:,}",
            *(f"{_spread(accuracy[who], 100)}%" for who in ("teacher", "labels", "distilled")),
            f"{_spread(found['gain'], 100)}",
            ", ".join(f"{low:.1f} to {high:.1f}" for low, high in by_seed),
        )


def _online() -> Iterator[Row]:
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


def _steps() -> Iterator[Row]:
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


def _kernels() -> Iterator[Row]:
    for row in result("kernels_cpu")["rows"]:
        timed = {name: v for name, v in row["rivals"].items() if "seconds" in v}
        best = min(timed, key=lambda name: timed[name]["seconds"])
        yield (
            f"`{row['op']}` {row['variant']}".strip(),
            short(1000 * row["seconds"]),
            f"{100 * row['share_of_limit']:.0f}%",
            _megabytes(row["peak_bytes"]),
            f"{best}, {timed[best]['ratio']:.3g}",
            _megabytes(timed[best]["peak_bytes"]),
            f"{timed['eager']['ratio']:.3g}",
        )


def _megabytes(size: int) -> str:
    return f"{float(f'{size / 1e6:.3g}'):g} MB"


TABLES = (
    Table(
        "docs/store.md",
        ("share of a memory map's speed", "kdcache", "first epoch", *READERS, "kdcache, tokens/s"),
        _readers,
    ),
    Table(
        "docs/fidelity.md",
        ("kept", "bytes a row", "KL of the codes, nats", "gradient's error, T=1", "T=2"),
        _bytes,
    ),
    Table("docs/fidelity.md", ("hidden states", "bits a value", "error"), _hidden),
    Table(
        "docs/fidelity.md",
        (
            "kept",
            "masked LM: bytes a row",
            "loss, soft labels alone",
            "against all logits, by seed",
            "loss, hard labels too",
            "40 classes: accuracy",
        ),
        _pays,
    ),
    Table(
        "docs/methods.md",
        (
            "corpus",
            "labels of sentences",
            "teacher",
            "student from labels",
            "student from the cache",
            "gain, points",
            "95% intervals, by seed",
        ),
        _gains,
    ),
    Table(
        "docs/methods.md",
        (
            "",
            "SST-2, dense logits, 4,800 sentences, 3 seeds",
            "WikiText-2, masked, top-64 in 8-bit codes, 2 seeds",
        ),
        _online,
    ),
    Table(
        "docs/methods.md",
        (
            "a step",
            "hard labels",
            "from the cache",
            "teacher in the loop",
            "cache / hard",
            "loop / cache",
            "ceiling",
            "waits for data",
        ),
        _steps,
    ),
    Table(
        "docs/kernels.md",
        ("op", "ms", "of limit", "memory", "best rival, times as long", "its memory", "eager"),
        _kernels,
    ),
)


@dataclass(frozen=True)
class Claim:
    """A sentence whose `{}` are `figures`, read from committed results."""

    page: str
    text: str
    figures: Callable[[], Sequence[float]]

    def __str__(self) -> str:
        return plain(self.text.format(*self.figures()))


def _of(name: str, *path: str | int) -> float:
    found: Any = result(name)
    for step in path:
        found = found[step]
    return float(found)


def store_row(case: str, reader: str = "kdcache") -> Json:
    rows: list[Json] = result("store")["rows"]
    return next(row for row in rows if (row["case"], row["reader"]) == (case, reader))


def _signal(name: str) -> Json:
    return next(row for row in result("fidelity")["rows"] if row["signal"] == name)


def _kernel(op: str, variant: str) -> Json:
    return next(
        row for row in result("kernels_cpu")["rows"] if (row["op"], row["variant"]) == (op, variant)
    )


def _best(row: Json) -> float:
    """How many times as long the fastest rival took."""
    return min(float(v["ratio"]) for v in row["rivals"].values() if "ratio" in v)


def _rows_of_states(variant: str) -> list[float]:
    """Eager torch beside `hidden_mse`, by the number of rows."""
    rows = [row for row in result("hidden_mse_rows")["rows"] if row["variant"] == variant]
    return [row["rivals"]["eager"]["ratio"] for row in sorted(rows, key=lambda row: row["rows"])]


def _loss_minus_full(table: str, signal: str) -> float:
    values: list[float] = result("codec_quality_masked_lm")[table][signal]["minus_full"]
    return max(values)


def _mean_loss(signal: str) -> float:
    return _of("codec_quality_masked_lm", "test_loss", signal, "mean")


def _damage(kind: str) -> float:
    found = result("store_safety")["damage"][kind]
    assert found["undetected"] == found["unnamed"] == found["wrong"] == 0
    return float(found["tried"])


def _kills() -> float:
    races = result("store_safety")["races"].values()
    assert not any(r["failures"] or r["mixed_parts"] or r["damage"] or r["litter"] for r in races)
    return float(sum(race["kills"] for race in races))


def _peaks(what: str) -> list[float]:
    return [size[f"{what}_peak_bytes"] / 1e9 for size in result("memory")["sizes"]]


SST2, WORDS = "cached_vs_online_sst2_steps", "cached_vs_online_masked_lm_steps"
README = "README.md"
STORE, FIDELITY, KERNELS = "docs/store.md", "docs/fidelity.md", "docs/kernels.md"
METHODS = "docs/methods.md"

CLAIMS = (
    Claim(README, "{:.2f} times for this pair", lambda: [_of(SST2, "online_over_cached_step")]),
    Claim(
        README,
        "a step from the cache costs {:.2f} times as much",
        lambda: [_of(SST2, "cached_over_hard_step")],
    ),
    Claim(
        README,
        "{:.2f} times (SST-2), {:.2f} times (masked LM); with the teacher in the loop {:.2f} and "
        "{:.2f} times as much",
        lambda: [
            _of(name, figure)
            for figure in ("cached_over_hard_step", "online_over_cached_step")
            for name in (SST2, WORDS)
        ],
    ),
    Claim(
        README,
        "losses differ by {:.1g}%, accuracy by nothing; {:.0f} bytes a row of a masked LM: "
        "perplexity {:.1f} and {:.1f}",
        lambda: [
            100 * _of("cached_vs_online_sst2", "largest_loss_difference"),
            _of("cached_vs_online_masked_lm", "bytes_per_masked_row"),
            _of("cached_vs_online_masked_lm", "test_perplexity", "cached", "mean"),
            _of("cached_vs_online_masked_lm", "test_perplexity", "online", "mean"),
        ],
    ),
    Claim(
        README,
        "{:+.1f} ± {:.1f} and {:+.1f} ± {:.1f} points",
        lambda: [
            100 * _of("distillation_gain", corpus, "gain", figure)
            for corpus in CORPORA
            for figure in ("mean", "sd")
        ],
    ),
    Claim(
        README,
        "{:.1f} bytes for 50 soft labels of 30,522, KL of the codes {:.0e} nats",
        lambda: [
            _signal("logits:topk-small,k=50")[figure] for figure in ("bytes_per_row", "code_kl")
        ],
    ),
    Claim(
        README,
        "{:.2f} of a memory map's speed in shuffled order",
        lambda: [store_row("shuffled documents")["over_memmap"]],
    ),
    Claim(
        README,
        "{:.2f} and {:.2f} of its bare speed",
        lambda: [
            _of("build_throughput", task, "build_over_forward") for task in ("sst2", "masked_lm")
        ],
    ),
    Claim(
        README,
        "{:,.0f} kills, {:,.0f} flipped bits, {:.0f} lost and {:.0f} exchanged objects",
        lambda: [_kills(), *(_damage(kind) for kind in ("flips", "accidents", "swaps"))],
    ),
    Claim(
        README,
        "{:.2f} times as fast as the best rival, at {:.0f}% of a matrix product's speed",
        lambda: [
            _best(_kernel("linear_topk_kl", "T=1")),
            100 * _kernel("linear_topk_kl", "T=1")["share_of_limit"],
        ],
    ),
    Claim(
        STORE,
        "fsync runs at {:.2f} of raw `write` and `fsync` of the same bytes. The loader, up to "
        "tensors, gives {:.1f}M tokens a second",
        lambda: [
            store_row("write and fsync")["over_raw"],
            store_row("loader")["tokens_per_s"] / 1e6,
        ],
    ),
    Claim(
        STORE,
        "runs at {:.2f} (SST-2, dense logits and three [CLS] layers) and {:.2f}",
        lambda: [
            _of("build_throughput", task, "build_over_forward") for task in ("sst2", "masked_lm")
        ],
    ),
    Claim(
        STORE,
        "a build peaks at {:.2f} GB with 4,000 sentences and {:.2f} GB with 32,000; 600 steps of "
        "training peak at {:.2f} and {:.2f} GB",
        lambda: [*_peaks("build"), *_peaks("train")],
    ),
    Claim(STORE, "| {:,.0f} kills |", lambda: [_kills()]),
    Claim(STORE, "| bits flipped | {:,.0f} |", lambda: [_damage("flips")]),
    Claim(STORE, "| objects lost, emptied or cut | {:,.0f} |", lambda: [_damage("accidents")]),
    Claim(STORE, "| objects exchanged | {:,.0f} |", lambda: [_damage("swaps")]),
    Claim(STORE, "| {:.0f} builds |", lambda: [_of("store_safety", "full disk", "tried")]),
    Claim(
        FIDELITY,
        "the gradient of a batch is {:.1f} degrees off",
        lambda: [_signal("logits:sampled,n=50")["angle"]],
    ),
    Claim(
        FIDELITY,
        "64 likeliest tokens hold {:.0f}% of it",
        lambda: [100 * _of("cached_vs_online_masked_lm", "fidelity", "logits", "kept_mass")],
    ),
    Claim(
        FIDELITY,
        "cost {:.2f} nat. Sixteen",
        lambda: [_mean_loss("logits:topk,k=64") - _mean_loss("logits:dense")],
    ),
    Claim(
        FIDELITY,
        "no codec loses more than {:.3f} nat",
        lambda: [_loss_minus_full("test_loss_with_hard_labels", "logits:topk-small,k=64,draws=16")],
    ),
    Claim(
        KERNELS,
        "{:.1f}, {:.1f}, {:.1f} and {:.0f} times at 1,024, 4,096, 8,192 and 16,384",
        lambda: _rows_of_states("row scale"),
    ),
    Claim(
        KERNELS,
        "for six layers at once {:.1f}, {:.0f}, {:.0f} and {:.1f}",
        lambda: _rows_of_states("6 layers"),
    ),
    Claim(
        METHODS,
        "{:.1f}% from the cache and {:.1f}% from hard labels",
        lambda: [
            100 * _of("cached_vs_online_sst2", "dev_accuracy", how, "mean")
            for how in ("cached", "hard")
        ],
    ),
)


def with_tables(page: str, text: str) -> str:
    """The text of a page with its tables as the results have them."""
    for table in TABLES:
        if table.page == page:
            found = re.compile(rf"^{re.escape(table.first)}\n(?:\|.*\n)+", re.MULTILINE)
            text, count = found.subn(lambda _, table=table: table.text() + "\n", text)
            assert count == 1, f"{page} has {count} tables that begin with {table.first}"
    return text


if __name__ == "__main__":
    for page in sorted({table.page for table in TABLES}):
        path = ROOT / page
        path.write_text(with_tables(page, path.read_text("utf-8")), "utf-8")
        print(f"wrote {path}")
