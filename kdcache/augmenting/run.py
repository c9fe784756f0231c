"""Augment: texts in which a masked language model has put other words, as TinyBERT makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.augmenting.fill_in import FillIn, replaced
from kdcache.corpora.documents import Corpus, Document, open_corpus
from kdcache.errors import ConfigError, MismatchError, require_path
from kdcache.models import load_teacher, load_tokenizer
from kdcache.progress import Shown, shown
from kdcache.store.io.durable_writes import remove_tree, replace_synced, writing

PROVENANCE = ("parent", "round", "operation")
"""Columns of an augmented corpus beside those of its source."""
OPERATION = "masked-lm"
SETTINGS = "settings.json"
TOGETHER = 64  # documents between two savings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides which texts are made.

    Attributes:
        documents: digest of the documents of the source.
        masked_lm: digest of the weights of the model that is asked for words.
        probability: of a word's being replaced.
        candidates: likeliest words that it is replaced by one of.
        samples: texts made of each document, at most: those that come out alike count once.
        max_length: tokens that the model sees of a document.
        round: number of this round; the source of the second is what the first made.
        seed: of what is replaced by what.
    """

    documents: str
    masked_lm: str
    probability: float
    candidates: int
    samples: int
    max_length: int
    round: int
    seed: int


@dataclass(frozen=True)
class AugmentResult:
    """A corpus that was made.

    Attributes:
        file: JSON lines, with the columns of the source that are text or label, and `parent` (the
            number of the document in the source, from 0), `round` and `operation`.
        documents: how many it holds.
        parents: how many documents the source has.
    """

    file: Path
    documents: int
    parents: int


def augment(
    corpus: Any,
    *,
    masked_lm: str | Path,
    out: str | Path,
    probability: float = 0.4,
    candidates: int = 15,
    samples: int = 20,
    max_length: int = 128,
    batch_size: int = 64,
    round_number: int = 1,
    seed: int = 0,
    device: str = "auto",
    text_columns: Sequence[str] = (),
    label_column: str | Sequence[str] | None = None,
    ignore_columns: Sequence[str] = (),
    limit: int | None = None,
    progress: Shown = None,
) -> AugmentResult:
    """Make `samples` further texts of each document of `corpus`, by a masked LM's words.

    As in TinyBERT (Jiao et al. 2020, arXiv:1909.10351), whose settings are the defaults, but for
    words of several tokens: they too are masked, as one, where the paper asks GloVe. Labels are
    those of the parents.

    Args:
        corpus, text_columns, label_column, ignore_columns, limit: as in `plan`.
        masked_lm: folder or hub name of the model.
        out: file to write, .jsonl; while it is made, parts lie in a folder beside it, and a call
            that was stopped goes on behind them.
        batch_size: masked copies that run together: there is one for each word.
        round_number: written into the column `round`.

    The same seed gives the same texts for the same documents and model.

    Raises:
        ConfigError: a setting cannot work.
        CorpusError: a corpus cannot be read.
        ModelError: a model cannot be loaded.
        MismatchError: `out` is there already, or was begun with other settings. Nothing is written
            where one of these is raised.
    """
    _check(
        probability,
        candidates=candidates,
        samples=samples,
        round_number=round_number,
        batch_size=batch_size,
    )
    require_path("the masked LM", masked_lm)
    bar, file = shown(progress), Path(out)
    if file.suffix != ".jsonl":
        raise ConfigError(f"the corpus is written as JSON lines: call it *.jsonl; got {out}")
    if file.exists():
        raise MismatchError(f"{file} is there already: give another --out, or remove it")
    opened = open_corpus(
        corpus,
        text_columns=text_columns,
        label_column=label_column,
        ignore_columns=ignore_columns,
        limit=limit,
    )
    taken = [name for name in (*opened.text_columns, *opened.label_columns) if name in PROVENANCE]
    if taken:
        raise ConfigError(
            f"column {taken[0]!r} of the corpus is what an augmented one says of its documents: "
            "rename it"
        )
    documents, tokenizer = list(opened), load_tokenizer(masked_lm)
    _ = tokenizer.mask_id  # or there is none
    teacher = load_teacher(masked_lm, task="masked-lm", device=device)
    settings = Settings(
        documents=_digest(documents),
        masked_lm=teacher.identity["weights_sha256"],
        probability=probability,
        candidates=candidates,
        samples=samples,
        max_length=max_length,
        round=round_number,
        seed=seed,
    )
    words = FillIn(
        teacher.model,
        tokenizer.plain,
        candidates=candidates,
        max_length=max_length,
        batch_size=batch_size,
    )
    with writing(file):
        parts = _begun(file.with_name(f"{file.name}.parts"), settings)
        with bar.bar("augmenting", unit="documents", total=len(documents)) as advance:
            for start in range(0, len(documents), TOGETHER):
                some = documents[start : start + TOGETHER]
                part = parts / f"{start:012d}.jsonl"
                if not part.exists():
                    rows = _rows(opened, some, start, words, settings)
                    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                    replace_synced(part, lines.encode())
                advance(len(some))
        made = b"".join(path.read_bytes() for path in sorted(parts.glob("*.jsonl")))
        replace_synced(file, made)
        remove_tree(parts)
    return AugmentResult(file, made.count(b"\n"), len(documents))


def _check(probability: float, **counts: int) -> None:
    if not 0 < probability <= 1:
        raise ConfigError(
            f"probability of a word's being replaced is above 0, and 1 at most; got {probability:g}"
        )
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name.replace('_', ' ')} must be 1 or more; got {count}")


def _digest(documents: Sequence[Document]) -> str:
    found = hashlib.sha256()
    for one in documents:
        found.update(json.dumps([one.text, one.pair, repr(one.label)]).encode())
    return found.hexdigest()


def _begun(parts: Path, settings: Settings) -> Path:
    """The folder of the parts, where those of the same settings may lie already."""
    file, wanted = parts / SETTINGS, asdict(settings)
    if file.exists():
        there = json.loads(file.read_text("utf-8"))
        other = [name for name, value in wanted.items() if there.get(name) != value]
        if other:
            raise MismatchError(
                f"{parts} was begun with other {', '.join(other)}: say the same again, give "
                "another --out, or remove it"
            )
        return parts
    parts.mkdir(parents=True, exist_ok=True)
    replace_synced(file, json.dumps(wanted).encode())
    return parts


def _rows(
    corpus: Corpus, documents: Sequence[Document], first: int, words: FillIn, settings: Settings
) -> Iterator[dict[str, Any]]:
    """The rows that are made of some documents, the first of which has that number."""
    texts = [[one.text] if one.pair is None else [one.text, one.pair] for one in documents]
    for place, (one, own, found) in enumerate(zip(documents, texts, words.of(texts), strict=True)):
        made: dict[tuple[str, ...], None] = {}
        for sample in range(settings.samples):
            rng = np.random.default_rng((settings.seed, settings.round, first + place, sample))
            made[tuple(replaced(own, found, settings.probability, rng))] = None
        made.pop(tuple(own), None)
        for new in made:
            yield {
                **dict(zip(corpus.text_columns, new, strict=True)),
                **_labels(corpus, one),
                **dict(zip(PROVENANCE, (first + place, settings.round, OPERATION), strict=True)),
            }


def _labels(corpus: Corpus, document: Document) -> dict[str, Any]:
    """The labels of a document by column."""
    columns = corpus.label_columns
    if len(columns) > 1:
        return dict(zip(columns, document.label, strict=True))
    return dict.fromkeys(columns, document.label)
