"""Ship a classifier: from a folder of torch and transformers to one that needs neither."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdcache.building.planner import PlanOptions, scratch_folder
from kdcache.errors import ConfigError
from kdcache.evaluation.kept import keep
from kdcache.labels import LABEL_KINDS
from kdcache.manifest import Json
from kdcache.progress import Progress, Shown, short, shown
from kdcache.shipping.card import write_card
from kdcache.shipping.extra import require_extra
from kdcache.shipping.faithful import MOST, require_faithful
from kdcache.shipping.folder import MODEL, bytes_of, write_folder, write_report
from kdcache.shipping.graph import export_graph
from kdcache.shipping.measure import CALLS, measure, said, torch_logits
from kdcache.shipping.quantise import quantise
from kdcache.shipping.source import Source, load_source, require_classifier, require_labels
from kdcache.shipping.verdict import notes, unmeasured
from kdcache.store.io.durable_writes import occupied, require_writable, writing

KINDS = ("fp32", "int8")
TIMED = "text to probabilities, tokenisation included"


def ship(
    student: str | Path,
    out: str | Path,
    *,
    int8: bool = False,
    measure: Any = None,
    teacher: str | Path | None = None,
    text_columns: Sequence[str] = (),
    label_column: str | Sequence[str] | None = None,
    ignore_columns: Sequence[str] = (),
    limit: int | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    progress: Shown = None,
) -> Json:
    """Write the classifier in the folder `student` to the new folder `out` to run without torch.

    `out` then holds an ONNX model, its tokenizer and labels, and `infer.py`, which needs
    onnxruntime, tokenizers and numpy only. Its float32 logits are those of the torch model to 1e-4
    of the largest, or it is not written.

    Args:
        student: a folder `train` wrote, or any folder or hub name of a classifier or regressor.
        out: a folder that is not there yet, or is empty.
        int8: write weights and embeddings in 8 bits, a quarter of the bytes.
        measure: a corpus, as in `plan`, with labels: scores, agreement with torch, latency and
            memory are measured on it, in float32 and in int8.
        teacher: folder of the teacher, to be shipped and measured beside in both.
        text_columns: of `measure`, as in `plan`; without it, their number tells whether a model
            that no note of its training lies beside reads one text or a pair.
        max_length: tokens a text is cut to; that of training, else what the tokenizer says.
        trust_remote_code: run code that comes with a student or teacher, such as the class of a
            student that is a module of somebody's own.

    Returns a report, which the folder keeps as `report.json`: "folder", "bytes" (of the files that
    run; card and report left out), "model_bytes", "int8", "max_length", "problem", "labels",
    "texts" of a document (None: not known), "parameters", "fidelity" (see `shipping.faithful`),
    "notes" (sentences). Measured also "file", "documents", "threads", "calls", "timed" and
    "models": for "fp32", "int8" and, with a teacher, "teacher_fp32" and "teacher_int8" their
    "bytes", "model_bytes", "p50_ms" and "p95_ms" of a call with one text on one thread,
    "tokenise_p50_ms" of it, "peak_bytes" of its process, the scores of `evaluate`, and "agreement"
    with the torch model (a share of the documents).

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
        ConfigError: options that do not go together.
        ModelError: the student cannot be loaded, or its graph does not say what it says.
        CorpusError: the documents cannot be read.
        CacheError: `out` cannot be written. Nothing is left behind.
    """
    shipped = KINDS[int8]
    options = _options(text_columns, label_column, ignore_columns, limit, max_length)
    given = (student, {shipped: Path(out)}, options, measure, teacher, shown(progress))
    return _ship(*given, trust=trust_remote_code)[shipped]


def ship_both(
    model: str | Path,
    *,
    fp32: Path,
    int8: Path,
    measure: Any = None,
    text_columns: Sequence[str] = (),
    label_column: str | Sequence[str] | None = None,
    max_length: int | None = None,
    kept: Path | None = None,
    trust_remote_code: bool = False,
    progress: Shown = None,
) -> dict[str, Json]:
    """Ship a model in float32 and in int8, exported once, to two new folders of one disk.

    Takes and returns what `ship` does, the reports by kind, and raises what it raises. What each
    document of `measure` adds to the scores goes into the folder `kept` (`evaluation.kept`):
    "fp32.npz" of the torch model, whose outputs are those of its graph, and "int8.npz".
    """
    options = _options(text_columns, label_column, (), None, max_length)
    given = (model, {"fp32": fp32, "int8": int8}, options, measure, None, shown(progress))
    return _ship(*given, trust=trust_remote_code, kept=kept)


def kept_file(folder: Path, kind: str) -> Path:
    """What is kept of a model of a kind in the folder `kept`."""
    return folder / f"{kind}.npz"


def _options(
    text_columns: Sequence[str],
    label_column: str | Sequence[str] | None,
    ignore_columns: Sequence[str],
    limit: int | None,
    max_length: int | None,
) -> PlanOptions:
    """How texts are read; their length is left to the model where it is None."""
    options: PlanOptions = {
        "text_columns": text_columns,
        "label_column": label_column,
        "ignore_columns": ignore_columns,
        "limit": limit,
    }
    if max_length is not None:
        options["max_length"] = max_length
    return options


def _ship(
    student: str | Path,
    folders: Mapping[str, Path],
    options: PlanOptions,
    measure: Any,
    teacher: str | Path | None,
    progress: Progress,
    *,
    trust: bool = False,
    kept: Path | None = None,
) -> dict[str, Json]:
    """Write a model of each kind to its folder; returns their reports."""
    require_extra()
    for folder in folders.values():
        _require_free(folder)
    if teacher is not None and measure is None:
        raise ConfigError("--teacher is measured on texts: name them with --measure FILE")
    for model in (student, *([] if teacher is None else [teacher])):
        require_classifier(model, trust=trust)
    first = next(iter(folders.values()))
    with _above(first), scratch_folder(first) as scratch, writing(first):
        work = _Work(scratch, measure, progress, trust, kept)
        report = work.ship(student, options, "", folders)
        if teacher is not None:
            options["max_length"] = report["max_length"]
            theirs = work.ship(teacher, options, "teacher_", folders)
            report["models"] |= theirs["models"]
        return {kind: work.put(kind, folder, report) for kind, folder in folders.items()}


class _Work:
    """A scratch folder in which models are made and measured."""

    def __init__(
        self, scratch: Path, file: Any, progress: Progress, trust: bool, kept: Path | None
    ) -> None:
        self.scratch, self.file, self.progress, self.trust = scratch, file, progress, trust
        self.kept = kept

    def folder(self, prefix: str, kind: str) -> Path:
        """The folder of a model in the scratch folder."""
        return self.scratch / f"{prefix or 'student_'}{kind}"

    def put(self, kind: str, folder: Path, report: Json) -> Json:
        """Move what was made of the student to its folder, with a card; returns its report."""
        made = self.folder("", kind)
        summary = _summary(report, folder, made, kind)
        write_card(made, folder.resolve().name, summary)
        write_report(made, summary)
        os.replace(made, folder)
        return summary

    def ship(
        self, model: str | Path, options: PlanOptions, prefix: str, shipped: Collection[str]
    ) -> Json:
        """Make a model in fp32 and, where it is shipped or measured, in int8."""
        scratch = self.scratch / f"{prefix or 'student_'}texts"
        scratch.mkdir()
        told: Any = {"scratch": scratch, "progress": self.progress, "trust": self.trust}
        source = load_source(model, self.file, options, **told)
        if self.file is not None:
            require_labels(source, self.file)
        kinds = KINDS if self.file is not None or "int8" in shipped else KINDS[:1]
        fidelity = self._make(source, prefix, kinds)
        report = {
            **{
                name: source.settings[name] for name in ("max_length", "problem", "labels", "texts")
            },
            "parameters": source.torch.identity["parameters"],
            "fidelity": fidelity,
        }
        return report | self._measured(source, prefix, kinds, scratch)

    def _make(self, source: Source, prefix: str, kinds: Sequence[str]) -> Json:
        """Write the folders of a model; returns what float32 differs from torch."""
        full = write_folder(source, self.folder(prefix, "fp32"))
        types = source.tokenizer.identity["type_ids"]
        with self.progress.bar(f"exporting {source.name} to ONNX", unit="models", total=1) as done:
            export_graph(source.torch.model, full / MODEL, name=source.name, token_types=types)
            fidelity = require_faithful(source, full)
            done(1)
        for _ in kinds[1:]:
            with self.progress.bar(f"{source.name} in int8", unit="models", total=1) as done:
                small = write_folder(source, self.folder(prefix, "int8"))
                quantise(full / MODEL, small / MODEL)
                done(1)
        return fidelity

    def _measured(self, source: Source, prefix: str, kinds: Sequence[str], scratch: Path) -> Json:
        if self.file is None:
            return {}
        expected = torch_logits(source, self.progress)
        if self.kept is not None:
            full = kept_file(self.kept, KINDS[0])
            keep(full, source.documents.plan, said(source, expected))
        rows = {}
        for kind in kinds:
            rows[f"{prefix}{kind}"] = measure(
                source,
                self.folder(prefix, kind),
                expected,
                f"{source.name} in {kind}",
                scratch=scratch,
                progress=self.progress,
                kept=kept_file(self.kept, kind) if self.kept and kind != KINDS[0] else None,
            )
        about = {"file": short(self.file), "documents": len(expected), "threads": 1, "calls": CALLS}
        return about | {"timed": TIMED, "models": rows}


def _summary(report: Json, folder: Path, made: Path, shipped: str) -> Json:
    """The report with what is written, and what its figures say."""
    head = {
        "folder": str(folder),
        "int8": shipped == "int8",
        "bytes": bytes_of(made),
        "model_bytes": (made / MODEL).stat().st_size,
    }
    report["notes"] = list(
        notes(report["models"], LABEL_KINDS[report["problem"]].headline, shipped)
        if "models" in report
        else unmeasured(shipped)
    )
    report["fidelity"]["allowed"] = MOST
    return head | report


@contextmanager
def _above(folder: Path) -> Iterator[None]:
    """Take the folders above one away again that were made for it in vain."""
    missing = [path for path in folder.absolute().parents if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # something else has come to lie there
                path.rmdir()
        raise


def _require_free(folder: Path) -> None:
    if occupied(folder):
        raise ConfigError(f"{folder} exists and is not an empty folder; choose another")
    if folder.resolve() == Path.cwd():
        raise ConfigError(f"{folder} is the folder you are in, and is to be replaced: name another")
    require_writable(folder)
