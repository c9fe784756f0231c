"""Run the teacher over one part and encode what it says, on the teacher's device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from kdcache.corpora.numbering import Numbering
from kdcache.errors import ModelError
from kdcache.manifest import Json
from kdcache.models import Teacher, check_alone, run
from kdcache.plans import Array, Docs, Plan
from kdcache.plans.batch import length_batches
from kdcache.progress import Advance, Progress, quiet
from kdcache.signals import LOGITS, TAP_KINDS, Activations, merge, taps_of
from kdcache.signals.base import Arrays, Stats
from kdcache.spans import ENCODE, FETCH, FIDELITY, FORWARD, READ, span
from kdcache.store import Cache
from kdcache.tasks import RowSpace, Subset

FIDELITY_ROWS = 1536
RowActivations = Mapping[RowSpace, Activations]
"""Activations of the teacher at the rows of each space that something is stored in."""


class Capture:
    """Turns parts of a cache's plan into rows of its signal arrays.

    Attributes:
        numbering: where set, takes in the teacher's classes beside the labels until it has enough.

    Raises ModelError for a teacher whose outputs for a document hang on the others of a batch.
    """

    def __init__(
        self, cache: Cache, teacher: Teacher, batch_tokens: int, progress: Progress = quiet
    ) -> None:
        self.cache, self.teacher, self.batch_tokens = cache, teacher, batch_tokens
        self.plan = cache.plan
        self.numbering: Numbering | None = None
        self.taps = taps_of(cache.signals.values())
        if self.plan.label_kind.numbered:
            self.taps.add(LOGITS)  # for `numbering`
        self.spaces = {name: cache.space_of(name) for name in cache.signals}
        self.sampled = {space: _sampled(self.plan, space) for space in set(self.spaces.values())}
        check_alone(
            teacher.model,
            self.plan.task,
            self.plan,
            name=teacher.identity["name"],
            hidden=any(TAP_KINDS[tap.name].per != "row" for tap in self.taps),
            progress=progress,
        )

    @property
    def forward(self) -> Json:
        """What the last bits of the teacher's outputs hang on, beyond the teacher itself."""
        return {"batch_tokens": self.batch_tokens, "device": self.teacher.device.type}

    def part(self, part: int, advance: Advance) -> tuple[dict[str, Array], Json]:
        """All rows of a part, by array, and its share of the fidelity figures."""
        rows = {
            name: np.zeros((layout.part_rows, *layout.row_shape), layout.dtype)
            for name, layout in self.cache.layouts.items()
        }
        stats: dict[str, list[Stats]] = {name: [] for name in self.cache.signals}
        before = {space: self._before(part, space) for space in self.sampled}
        for docs in length_batches(self.plan, self.plan.part_docs(part), self.batch_tokens):
            with span(READ):
                batch = self.cache.batch(docs, [])
            batch = batch.to(self.teacher.device)
            with torch.inference_mode():
                with span(FORWARD):
                    whole = run(self.teacher.model, batch, self.taps, task=self.plan.task)
                activations = {space: self._at_space(whole, docs, space) for space in self.sampled}
                self._require_finite(activations, docs)
                at = {space: self._rows(part, docs, space) for space in self.sampled}
                encoded = self._encode(activations, at, rows)
                with span(FIDELITY):
                    self._measure(activations, encoded, at, before, stats)
                self._note_classes(whole, docs)
            advance(int(batch["attention_mask"].sum()))
        return rows, {name: merge(found) for name, found in stats.items() if found}

    def _note_classes(self, whole: Activations, docs: Docs) -> None:
        if self.numbering is not None and not self.numbering.full:
            likeliest = whole[LOGITS].argmax(-1).cpu().numpy()
            self.numbering.add(self.plan.labels(docs), likeliest)

    def _at_space(self, whole: Activations, docs: Docs, space: RowSpace) -> Activations:
        """Activations of the teacher at the rows of a space."""
        if not isinstance(space, Subset):
            return whole
        rows = torch.from_numpy(self.plan.sampled_rows(docs, space)).to(self.teacher.device)
        return whole.at_rows(self.plan.task, space, rows)

    def _encode(
        self, activations: RowActivations, at: dict[RowSpace, Array], rows: dict[str, Array]
    ) -> dict[str, Arrays]:
        """Fill in the rows `at` of a batch; returns them, still on the device, by signal.

        Raises ModelError for rows of another width than the teacher's configuration tells.
        """
        with span(ENCODE):
            encoded = {
                name: signal.encode(activations[self.spaces[name]])
                for name, signal in self.cache.signals.items()
            }
        for name, arrays in encoded.items():
            for array, values in arrays.items():
                with span(FETCH):
                    target, found = rows[f"{name}/{array}"], values.cpu().numpy()
                if found.shape[1:] != target.shape[1:]:
                    raise ModelError(
                        f"the teacher's rows of {name}/{array} are {found.shape[1:]}, and by its "
                        f"configuration {target.shape[1:]}: leave the signal {name} out"
                    )
                target[at[self.spaces[name]]] = found
        return encoded

    def _measure(
        self,
        activations: RowActivations,
        encoded: dict[str, Arrays],
        at: dict[RowSpace, Array],
        before: dict[RowSpace, int],
        stats: dict[str, list[Stats]],
    ) -> None:
        """Add the fidelity of the sampled rows of a batch; `before` counts earlier parts' rows."""
        for name, signal in self.cache.signals.items():
            space = self.spaces[name]
            picked = np.flatnonzero(np.isin(at[space] + before[space], self.sampled[space]))
            if len(picked):
                index = torch.from_numpy(picked).to(self.teacher.device)
                stats[name].append(signal.measure(activations[space], encoded[name], index))

    def _rows(self, part: int, docs: Docs, space: RowSpace) -> Array:
        """Rows of documents in a space, counted from the part's first row."""
        starts, counts = self.plan.spans(docs, space)
        ends = np.cumsum(counts)
        first = np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1])
        rows: Array = first - part * self.plan.part_rows(space)
        return rows

    def _before(self, part: int, space: RowSpace) -> int:
        """Real rows of a space in the parts before this one."""
        docs = self.plan.docs[: np.searchsorted(self.plan.docs, part * self.plan.rows["document"])]
        return self.plan.extent(docs, space)

    def _require_finite(self, activations: RowActivations, docs: Docs) -> None:
        for name, signal in self.cache.signals.items():
            space = self.spaces[name]
            for tap, values in signal.values(activations[space]).items():
                self._check_rows(values, docs, space, str(tap))

    def _check_rows(self, values: torch.Tensor, docs: Docs, space: RowSpace, what: str) -> None:
        if torch.isfinite(values.sum()) or torch.isfinite(values).all():
            return  # a finite sum has finite terms, and takes one pass without a copy
        row = int((~torch.isfinite(values).all(-1)).nonzero()[0])
        counts = self.plan.spans(docs, space)[1]
        doc = docs[int(np.searchsorted(np.cumsum(counts), row, side="right"))]
        raise ModelError(
            f"the teacher's {what} are not finite for row "
            f"{self.plan.per_document['doc_id'][doc]} of the corpus (0 is the first); nothing of "
            "that part was stored: try --dtype fp32, or leave the document out"
        )


def _sampled(plan: Plan, space: RowSpace) -> Array:
    """Ordinals of the real rows whose fidelity is measured: FIDELITY_ROWS of them, by the seed."""
    total = plan.count(space)
    if total <= FIDELITY_ROWS:
        return np.arange(total)
    rng = np.random.default_rng((plan.config.seed, total))
    # Draws of many rows that leave enough when duplicates are gone; no memory grows with the plan.
    samples = (
        np.arange(total) if total < 4 * FIDELITY_ROWS else rng.integers(0, total, 2 * FIDELITY_ROWS)
    )
    sample: Array = np.sort(rng.permutation(np.unique(samples))[:FIDELITY_ROWS])
    return sample
