"""The figures in the sentences of the documentation, each read from a committed result."""

from __future__ import annotations

from typing import Any

from page_parts import (
    FIDELITY,
    KERNELS,
    METHODS,
    README,
    RECIPES,
    SST2,
    STORE,
    WORDS,
    Claim,
    Json,
    best_rival,
    result,
)
from page_rows import HEADLINES


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


def _kernel(op: str, variant: str, name: str = "kernels_cpu") -> Json:
    return next(row for row in result(name)["rows"] if (row["op"], row["variant"]) == (op, variant))


def _slower(vocab: int, padded: int) -> float:
    """How many times as long the products of a head take that is not padded."""
    rows = {row["vocab"]: row for row in result("products_h100")["rows"]}
    one, other = (
        sum(rows[v][part] for part in ("logits", "hidden", "head")) for v in (vocab, padded)
    )
    return float(one / other)


def _home_gain(corpus: str) -> list[float]:
    """Labels, documents, and what outputs gain over labels at home, in points."""
    found = result("gains")["corpora"][corpus]
    gain = next(iter(found["domains"].values()))["gains"]["kd over finetune"]
    points = [100 * value for value in (gain["difference"], *gain["both"])]
    return [found["labels"], found["training_documents"], *points]


def _least_seeds() -> int:
    return min(len(result("gains")["corpora"][corpus]["seeds"]) for corpus in HEADLINES)


def _rows_of_states(variant: str) -> list[float]:
    """Eager torch that keeps its pages beside `hidden_mse`, by the number of rows."""
    rows = [row for row in result("hidden_mse_rows")["rows"] if row["variant"] == variant]
    every = sorted(rows, key=lambda row: int(row["rows"]))
    return [row["rivals"]["eager"]["keeping"]["ratio"] for row in every]


def _cpu_losses() -> list[Json]:
    return [row for row in result("kernels_cpu")["rows"] if row["op"] == "topk_kl"]


def _eager(row: Json) -> tuple[float, float]:
    """Eager torch beside ours, by default and where freed pages are kept."""
    eager = row["rivals"]["eager"]
    return eager["ratio"], eager["keeping"]["ratio"]


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


def _away(row: str, over: str) -> float:
    """Points away that a row with more than the corpus has over another."""
    found = result("methods")["more"][row]["away_gains"][over]
    return 100 * float(found["difference"])


CLAIMS = (
    Claim(
        RECIPES,
        "cost `kd` {:.1f} points away. Texts of the domains that are scored gain it {:.1f} points "
        "there",
        lambda: [-_away("kd-augmented", "kd"), _away("kd-domains", "kd")],
    ),
    Claim(
        RECIPES,
        "{:.1f} hours of a core for the rates and three seeds of all",
        lambda: [result("methods")["hours"]],
    ),
    Claim(
        README,
        "{:.2f} times for these students of one to four of the teacher's six layers, {:.1f} times "
        "for a teacher of BERT-base's shape",
        lambda: [_of("amortised", "costs", "saving"), _of("amortised", "large_teacher", "saving")],
    ),
    Claim(
        README,
        "paid back after {:.1f} epochs",
        lambda: [_of("amortised", "crossing_epochs")],
    ),
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
        "with {:,.0f} labels of {:,.0f} sentences of reviews {:+.1f} points ({:+.1f} to {:+.1f}), "
        "with {:,.0f} of {:,.0f} of SST-2 {:+.1f} ({:+.1f} to {:+.1f})",
        lambda: [figure for corpus in HEADLINES for figure in _home_gain(corpus)],
    ),
    Claim(
        README,
        "Means over {:.0f} draws of labels",
        lambda: [_least_seeds()],
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
        "{:.2f} of a memory map's speed in shuffled order, checksums on; {:.2f} over a cold epoch, "
        "where Arrow has {:.2f}",
        lambda: [
            store_row("shuffled documents")["over_memmap"],
            *(
                store_row("cold cache, whole epoch", reader)["over_memmap"]
                for reader in ("kdcache", "Arrow IPC")
            ),
        ],
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
        "{:.2f} times as fast as the best rival, at {:.0f}% of a matrix product's speed; the loss "
        "alone {:.2f} times",
        lambda: [
            best_rival(_kernel("linear_topk_kl", "T=1"))["ratio"],
            100 * _kernel("linear_topk_kl", "T=1")["share_of_limit"],
            best_rival(_kernel("topk_kl", "T=1"))["ratio"],
        ],
    ),
    Claim(
        STORE,
        "LitData gives {:.1f}M tokens a second, MosaicML streaming {:.1f}M and kdcache {:.1f}M",
        lambda: [
            store_row("an epoch in its own order", reader)["tokens_per_s"] / 1e6
            for reader in ("LitData", "MosaicML streaming", "kdcache")
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
        "eager torch takes {:.1f} to {:.1f} times as long as `topk_kl` by default, and {:.1f} to "
        "{:.1f} times where pages are kept",
        lambda: [
            pick(ratios)
            for ratios in zip(*map(_eager, _cpu_losses()), strict=True)
            for pick in (min, max)
        ],
    ),
    Claim(
        KERNELS,
        "{:.2f}, {:.2f}, {:.2f}, {:.1f}, {:.1f}, {:.1f} and {:.1f} times at 8, 64, 256, 1,024, "
        "4,096, 8,192 and 16,384",
        lambda: _rows_of_states("row scale"),
    ),
    Claim(
        KERNELS,
        "for six layers at once {:.2f}, {:.2f}, {:.1f}, {:.1f}, {:.1f}, {:.1f} and {:.1f}",
        lambda: _rows_of_states("6 layers"),
    ),
    Claim(
        KERNELS,
        "take {:.1f} times as long for 30,522 classes as for 30,528, and {:.1f} times for 50,257 "
        "as for 50,304",
        lambda: [_slower(30522, 30528), _slower(50257, 50304)],
    ),
    Claim(
        README,
        "on an H100 {:.1f} times (the head padded, the rival's not) and the loss alone {:.1f} "
        "times",
        lambda: [
            best_rival(_kernel("linear_topk_kl", "T=1", "kernels_h100"))["ratio"],
            best_rival(_kernel("topk_kl", "T=1", "kernels_h100"))["ratio"],
        ],
    ),
    Claim(
        METHODS,
        "{:.2f} times as much for a classifier of BERT-small's shape, {:.2f} and {:.2f} times for "
        "causal models of 135M",
        lambda: [
            _of("steps", "shapes", shape, "cache", "cache_over_labels")
            for shape in ("BERT-small classifier", "135M causal", "500M causal")
        ],
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
