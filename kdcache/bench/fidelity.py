"""`kdcache bench fidelity`: what every codec costs in bytes, and in truth, on a real teacher.

Bytes are those of shard files, checksums and indexes included, and of artifacts where a codec has
some. Truth is the divergence of the decoded distribution from the teacher's and the gradient that a
half-trained student gets, against the one from all logits. Formats of other projects are measured
beside ours, by the arithmetic they publish; `file_bytes_per_row` is of the file they write. Sizes
and distances do not depend on the machine; speeds do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kdcache.bench.fidelity_formats import Format, formats
from kdcache.bench.fidelity_measure import (
    TEMPERATURES,
    Truth,
    compare,
    divergences,
    full_gradient,
    gradient,
    truth,
)
from kdcache.bench.fidelity_sample import Sample
from kdcache.bench.report import Json, new_report
from kdcache.errors import ConfigError
from kdcache.progress import Shown, shown, track
from kdcache.signals import (
    HEAD,
    Activations,
    ArraySpec,
    ArtifactSources,
    Head,
    ModelSizes,
    Signal,
    SoftLabels,
    Tap,
    artifacts,
    parse,
    with_artifacts,
)
from kdcache.store.format.array_reader import plan_layout
from kdcache.store.format.compressed_reader import encode_rows
from kdcache.tasks.causal_lm import CAUSAL_LM
from kdcache.tasks.masked_lm import MASKED_LM

KS = (16, 32, 50, 64, 128)
SAMPLES = (12, 25, 50, 100)
LOGITS = (
    "logits:dense,dtype=fp32",
    "logits:dense,dtype=fp16",
    *(f"logits:topk,k={k}" for k in KS),
    *(f"logits:topk-small,k={k}" for k in KS),
    "logits:topk-small,k=50,levels=64",
    "logits:topk-small,k=128,levels=64",
    *(f"logits:topk-small,k={k},draws=16" for k in (16, 50, 64)),
    *(f"logits:sampled,n={n}" for n in SAMPLES),
    "logits:hidden-head,dtype=fp16",
    "logits:hidden-head,dtype=int8,group=64",
    "logits:hidden-head,dtype=int4",
)
HIDDEN = (
    "dtype=int8",
    "dtype=int8,group=64",
    "dtype=int8,compress=zstd",
    "dtype=int4",
    "dtype=int4,group=32",
    "dtype=fp8",
    "dtype=fp8,compress=zstd",
    "dtype=bf16",
    "dtype=bf16,compress=zstd",
    "dtype=fp16",
    "dtype=fp32",
)
KEY = ("teacher", "signal")
BETTER = {
    "bytes_per_row": "lower",
    "kl_t1": "lower",
    "kl_t2": "lower",
    "angle": "lower",
    "bits_per_value": "lower",
    "error": "lower",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Codecs to measure, as `--signal` takes them; `rivals` adds the formats of other projects."""

    logits: Sequence[str] = LOGITS
    hidden: Sequence[str] = HIDDEN
    rivals: bool = True
    ks: Sequence[int] = field(default=KS)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What all of the teacher's logits give: gradients by temperature, and the teacher's rows."""

    gradients: Mapping[float, torch.Tensor]
    truths: Sequence[Truth]


def run(sample: Sample, choice: Choice | None = None, *, progress: Shown = None) -> Json:
    """Measure codecs on a sample; the report has a row for each, keyed by teacher and signal.

    Those that a teacher of its sizes cannot give are listed under `left_out`, with the reason.
    """
    progress = shown(progress)
    choice, left_out = _possible(choice or Choice(), _shape(sample))
    full = Whole(
        gradients={t: full_gradient(sample, t) for t in (1.0, 2.0)},
        truths=[truth(sample, t) for t in TEMPERATURES],
    )
    jobs: list[str | Format] = [*choice.logits, *(formats(choice.ks) if choice.rivals else [])]
    rows = [
        _ours(sample, job, full) if isinstance(job, str) else _rival(sample, job, full)
        for job in track(progress, jobs, "measuring", unit="codecs", total=len(jobs))
    ]
    rows += _one_token(sample, choice, full)
    rows += [measure_hidden(sample.hidden, options) for options in choice.hidden]
    return new_report(
        "fidelity",
        key=list(KEY),
        better=BETTER,
        sample={
            "teacher": sample.name,
            "rows": len(sample.logits),
            "vocabulary": sample.logits.shape[1],
            "hidden": sample.weight.shape[1],
            "entropy": _entropy(sample.logits),
            "student_kl": list(sample.student_kl),
        },
        left_out=left_out,
        rows=[{"teacher": sample.name, **row} for row in rows],
    )


def _possible(choice: Choice, shape: ModelSizes) -> tuple[Choice, dict[str, str]]:
    left_out = {}
    for text in (*choice.logits, *(f"hidden:layers=0,{options}" for options in choice.hidden)):
        try:
            parse(text).check(MASKED_LM, shape)
        except ConfigError as error:
            left_out[text.replace("layers=0,", "")] = str(error)
    sampled = replace(
        choice,
        logits=[text for text in choice.logits if text not in left_out],
        hidden=[options for options in choice.hidden if f"hidden:{options}" not in left_out],
        ks=[k for k in choice.ks if k < shape.outputs],
    )
    return sampled, left_out


def _entropy(logits: torch.Tensor) -> float:
    found = [(-p.exp() * p).sum(-1) for p in (x.log_softmax(-1) for x in logits.split(256))]
    return float(torch.cat(found).mean())


def _shape(sample: Sample) -> ModelSizes:
    outputs, width = sample.weight.shape
    return ModelSizes(outputs=outputs, hidden=width, layers=len(sample.hidden) - 1)


def ready(signal: Signal, sample: Sample) -> tuple[Signal, dict[str, bytes]]:
    """A signal with its artifacts, made of the sample, and those."""
    sources = ArtifactSources(
        token_counts=lambda: sample.counts,
        head=lambda: (sample.weight, sample.bias),
        projections=lambda layer: {},  # none of the signals it measures has any
    )
    files = artifacts([signal], MASKED_LM, _shape(sample), sources)
    return with_artifacts({"": signal}, _shape(sample), files.__getitem__)[""], files


def _ours(sample: Sample, text: str, full: Whole) -> Json:
    signal, files = ready(parse(text), sample)
    activations = _activations(sample)
    specs = signal.arrays(MASKED_LM, _shape(sample))
    encoded, seconds = _timed(lambda: signal.encode(activations))
    size, packing = _timed(lambda: stored_bytes(specs, encoded))
    made: Any = signal
    labels, reading = _timed(lambda: made.decode(encoded, Tap("logits"), _shape(sample)))
    rows = len(sample.logits)
    figures: Json = {
        "signal": text,
        "ours": True,
        "bytes_per_row": size / rows,
        "exact_bytes": all(spec.expected is None for spec in specs),
        "artifact_bytes": sum(map(len, files.values())),
        "encode_rows_per_s": rows / (seconds + packing),
        "decode_rows_per_s": rows / reading,
    }
    if text.startswith("logits:sampled"):
        live = labels.ids >= 0
        distinct = float(live.sum(1).float().mean())
        figures |= {"distinct_ids": distinct, "bytes_per_id": size / rows / distinct}
    return {**figures, **_distances(sample, labels, full)}


def _rival(sample: Sample, job: Format, full: Whole) -> Json:
    record = job.keep(sample.logits)
    figures: Json = {"signal": job.name, "ours": False, "bytes_per_row": record.size}
    if record.file_size is not None:
        figures["file_bytes_per_row"] = record.file_size
    return {**figures, **_distances(sample, record.labels, full)}


def _activations(sample: Sample) -> Activations:
    mask = torch.ones(len(sample.logits), 1, dtype=torch.bool)
    head = Head(hidden=sample.states, weight=sample.weight, bias=sample.bias)
    values = {Tap("logits"): sample.logits, HEAD: sample.states}
    return Activations(values=values, mask=mask, head=head)


def stored_bytes(specs: Sequence[ArraySpec], encoded: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the shard files that rows of these arrays would make."""
    total = 0
    for spec in specs:
        rows = encoded[spec.name]
        layout = plan_layout(
            spec.name,
            spec.dtype,
            spec.row_shape,
            part_rows=len(rows),
            chunk_rows=spec.chunk_rows,
            parts=1,
            packing=spec.packing,
        )
        for start in range(0, len(rows), layout.shard_rows):
            shard = rows[start : start + layout.shard_rows].numpy()
            total += sum(memoryview(piece).nbytes for piece in encode_rows(shard, layout))
    return total


def _distances(sample: Sample, labels: SoftLabels, full: Whole) -> Json:
    """Divergences and gradients; at T=1 with what was drawn from the tail, if anything was."""
    found: Json = {}
    sampled = bool((labels.ids < 0).any())
    if not sampled:  # an estimate gives most of the vocabulary nothing: its divergence is infinite
        found |= divergences(sample, labels, full.truths)
    found |= compare(gradient(sample, labels.with_drawn(), 1.0), full.gradients[1.0])
    if not sampled:
        found["error_t2"] = compare(gradient(sample, labels, 2.0), full.gradients[2.0])["error"]
    return found


def _one_token(sample: Sample, choice: Choice, full: Whole) -> Iterator[Json]:
    """Top-k whose tail at T=2 is one token, as others take it: what the second statistic buys."""
    for text in choice.logits:
        if text.startswith("logits:topk,"):
            signal: Any = parse(text)
            encoded = signal.encode(_activations(sample))
            labels = signal.decode(encoded, Tap("logits"), _shape(sample))
            labels = SoftLabels(
                ids=labels.ids,
                logprobs=labels.logprobs,
                tail_logmass=labels.tail_logmass,
                tail_stat=labels.tail_logmass / 2,
            )
            error = compare(gradient(sample, labels, 2.0), full.gradients[2.0])["error"]
            yield {"signal": f"{text}, tail as one token", "ours": False, "error_t2": error}


def measure_hidden(hidden: Sequence[torch.Tensor], options: str) -> Json:
    """Bits a value on disk and relative error by layer, of layers [N, H] stored with `options`."""
    layers = range(len(hidden))
    text = f"hidden:layers={'-'.join(map(str, layers))},positions=all,{options}"
    signal = parse(text)
    mask = torch.ones(len(hidden[0]), 1, dtype=torch.bool)
    states = {Tap("hidden", i): layer[:, None] for i, layer in enumerate(hidden)}
    activations = Activations(values=states, mask=mask)
    shape = ModelSizes(outputs=1, hidden=hidden[0].shape[1], layers=len(hidden) - 1)
    encoded, seconds = _timed(lambda: signal.encode(activations))
    size, packing = _timed(lambda: stored_bytes(signal.arrays(CAUSAL_LM, shape), encoded))
    taps = signal.taps()
    _, reading = _timed(lambda: [signal.decode(encoded, tap, shape).dense() for tap in taps])
    stats = signal.measure(activations, encoded, torch.arange(len(mask)))
    errors = list(signal.summarise(stats)["relative_error"].values())
    values = sum(layer.numel() for layer in hidden)
    return {
        "signal": f"hidden:{options}",
        "ours": True,
        "bits_per_value": 8 * size / values,
        "error_by_layer": errors,
        "error": max(errors),
        "encode_values_per_s": values / (seconds + packing),
        "decode_values_per_s": values / reading,
    }


def _timed(work: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start
