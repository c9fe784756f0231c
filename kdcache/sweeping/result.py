"""What a sweep comes to: its folder, the table of what students are worth, and the picture."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.rendering import Text
from kdcache.sweeping.picture import draw
from kdcache.sweeping.record import Record, Worst
from kdcache.sweeping.rows import Scoring
from kdcache.sweeping.told import record_table

if TYPE_CHECKING:
    import pandas

TABLE, PICTURE = "sweep.csv", "sweep.png"


@dataclass(frozen=True)
class SweepResult:
    """A sweep that is over.

    Attributes:
        folder: `students/NAME`, each a run folder as `train` leaves it, `shipped/NAME/fp32` and
            `int8` as `ship` leaves them, `sweep.json`, `sweep.csv` and `sweep.png`.
        record: all that `sweep.json` holds; `record.picked` is the row to take.
    """

    folder: Path
    record: Record

    def table(self) -> pandas.DataFrame:
        """The table: a row for each setting and kind, the best first, and the teacher's at the end.

        Columns are "model", "kind", the settings that differ, "dev", "dev_sd", "dev_n", the same
        for "eval", "parameters", "mb" (1,000,000 bytes), "p50_ms", "p95_ms" and "picked"; where the
        dev set is sliced also "worst_slice", how many of its "worst_documents" have labels,
        "worst_drop" and the interval of that, "worst_low" and "worst_high": see `Worst`.
        """
        import pandas

        rows = [_cells(self.record, row) for row in self.record.rows]
        made = pandas.DataFrame(rows)
        types = {name: {type(row[name]) for row in rows} - {type(None)} for name in made}
        whole = [name for name, found in types.items() if found == {int}]
        return made.astype(dict.fromkeys(whole, "Int64"))  # also where some are missing

    def plot(self, path: str | Path | None = None) -> Path:
        """Draw the scores against size and latency as a PNG, `sweep.png` if no path is given."""
        place = self.folder / PICTURE if path is None else Path(path)
        record = self.record
        draw(place, record, scoring_of(record))
        return place

    def _repr_html_(self) -> str:
        told = Text(f"`{self.folder}`: {len(self.record.students)} students, {self._picked}")
        page = told.html() + record_table(self.record).html()
        drawn = self.folder / PICTURE
        if not drawn.is_file():
            return page
        data = base64.b64encode(drawn.read_bytes()).decode()
        alt = "Scores against size and latency, as in the table"
        return f'{page}<img src="data:image/png;base64,{data}" alt="{alt}" style="max-width:100%">'

    @property
    def _picked(self) -> str:
        row = self.record.picked
        return "none picked" if row is None else f"picked {row.name} in {row.kind}"

    @property
    def picked(self) -> Path | None:
        """The folder of the student to take; None: none was picked."""
        name = self.record.pick
        found = (one for one in self.record.students if one.name == name)
        return next((self.folder / one.folder for one in found), None)

    def __repr__(self) -> str:
        trained = sum(one.state == "trained" for one in self.record.students)
        return f"<SweepResult {self.folder}: {trained} students trained, {self._picked}>"


def scoring_of(record: Record) -> Scoring:
    """What the rows of a record are scored by."""
    measured = None
    if record.measured is not None and "file" in record.measured:
        measured = "dev" if record.dev is not None and "file" in record.dev else "eval"
    return Scoring(
        metric=record.metric,
        higher=record.higher_is_better,
        measured=measured,
        dev=record.dev is not None,
    )


def _cells(record: Record, row: Any) -> dict[str, Any]:
    cells = {"model": row.name, "kind": row.kind}
    cells |= {axis: row.settings.get(axis) for axis in record.axes if axis != "seed"}
    for name in ("dev", "eval"):
        mean = getattr(row, name)
        for part in ("mean", "sd", "n"):
            label = name if part == "mean" else f"{name}_{part}"
            cells[label] = None if mean is None else getattr(mean, part)
    lost = _lost(row.worst) if record.by else {}
    return cells | {
        "parameters": row.parameters,
        "mb": None if row.bytes is None else row.bytes / 1e6,
        "p50_ms": row.p50_ms,
        "p95_ms": row.p95_ms,
        **lost,
        "picked": row.picked,
    }


def _lost(worst: Worst | None) -> dict[str, Any]:
    low, high = (None, None) if worst is None or worst.interval is None else worst.interval
    return {
        "worst_slice": None if worst is None else worst.where,
        "worst_documents": None if worst is None else worst.documents,
        "worst_drop": None if worst is None else worst.drop,
        "worst_low": low,
        "worst_high": high,
    }
