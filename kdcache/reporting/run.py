"""Make a report: facts from folders, scores where documents are named for it, the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, KdcacheError
from kdcache.evaluation.evaluator import evaluate
from kdcache.evaluation.shared_teacher import SharedTeacher
from kdcache.manifest import Json
from kdcache.progress import Progress, Shown, short, shown
from kdcache.rendering import Part, Points, Section, Text
from kdcache.reporting.collect import collect
from kdcache.reporting.facts import Facts, StudentFacts
from kdcache.reporting.origin_sections import (
    cache_section,
    data_section,
    hash_section,
    students_section,
    teacher_section,
)
from kdcache.reporting.overview import overview_section
from kdcache.reporting.page import GENERATOR, Page, write_pictures
from kdcache.reporting.score_sections import (
    cost_section,
    dev_section,
    outputs_section,
    scores_section,
    shipped_section,
)
from kdcache.reporting.sweeps import sweep_sections
from kdcache.store import Place
from kdcache.store.io.durable_writes import replace_synced, require_writable, writing

SECTIONS: tuple[Callable[[Facts], Section], ...] = (
    overview_section,
    data_section,
    teacher_section,
    scores_section,
    dev_section,
    outputs_section,
    cost_section,
    shipped_section,
    students_section,
    cache_section,
    hash_section,
)
"""What a page is made of, from its top; sweeps follow on the first."""


@dataclass(frozen=True)
class Report:
    """What folders tell, and the page that tells it; a notebook shows the page.

    Attributes:
        facts: as they were read.
        page: as HTML and as Markdown.
    """

    facts: Facts = field(repr=False)
    page: Page = field(repr=False)

    def __repr__(self) -> str:
        kinds = {name: len(getattr(self.facts, name)) for name in ("students", "caches", "shipped")}
        return f"<Report of {', '.join(f'{count} {name}' for name, count in kinds.items())}>"

    def _repr_html_(self) -> str:
        return self.page._repr_html_()

    def to_json(self) -> Json:
        """The facts as JSON values, with the sentences on what is not known under "notes"."""
        return self.facts.to_json()


def report(
    *folders: Place,
    out: str | Path | None = None,
    markdown: str | Path | None = None,
    eval_file: Any = None,
    teacher: str | Path | None = None,
    by: str | Sequence[str] = (),
    batch_size: int = 64,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Shown = None,
) -> Report:
    """Put what is known of students, their teachers and caches on one page.

    Figures are those that the folders hold: nothing is trained, and nothing is run but what
    `eval_file` asks for. What is missing is said on the page, with the command that makes it.

    Args:
        folders: of students, sweeps, shipped models, taught teachers and caches, in any order.
        out: a file to write the page to, HTML that needs nothing beside it. A report that lies
            there is replaced, any other file is not.
        markdown: a file to write the same to as Markdown; its pictures go into a folder beside it.
        eval_file: a corpus with labels, as in `evaluate`, to score all students on.
        teacher: folder of the teacher, to be scored on it too.
        by: columns of it, or "length", by whose values students are also scored slice by slice.
        batch_size: documents of mean length in a forward.
        trust_remote_code: run code that comes with a student or teacher.

    Raises:
        ConfigError: there is no folder, one of none of these kinds, or a file that is no report
            would be replaced.
        CacheError: a plan in the place of a cache, or a file that cannot be written.
        ModelError, CorpusError: no student can be scored on `eval_file`.
    """
    files = [Path(path) for path in (out, markdown) if path is not None]
    for path in files:
        _require_free(path)
    if teacher is not None and eval_file is None:
        raise ConfigError("a teacher is scored on documents: name them with --eval FILE")
    if by and eval_file is None:
        raise ConfigError("slices are cut of documents: name them with --eval FILE")
    facts = collect(folders)
    if eval_file is not None:
        options: Any = {"batch_size": batch_size, "device": device, "by": by}
        options["trust_remote_code"] = trust_remote_code
        # Students that read alike share what the teacher says: it is run once.
        shared = None if teacher is None else SharedTeacher(teacher)
        facts = _scored(facts, eval_file, shared, options, shown(progress))
    made = Report(facts, _page(facts))
    if out is not None:
        _write(Path(out), made.page.html())
    if markdown is not None:
        folder = Path(markdown).with_suffix("").name + "-pictures"
        _write(Path(markdown), made.page.markdown(folder))
        write_pictures(made.page.pictures, Path(markdown).parent / folder)
    return made


def _require_free(path: Path) -> None:
    require_writable(path, file=True)
    if path.is_file() and GENERATOR not in path.read_bytes()[:2000].decode("utf-8", "replace"):
        raise ConfigError(f"{path} is there and is no report: name another file")


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_synced(path, text.encode())


def _page(facts: Facts) -> Page:
    first, *others = SECTIONS
    sections = (first(facts), *sweep_sections(facts), *(make(facts) for make in others))
    title, lead = _title(facts)
    return Page(title, lead, (*sections, _unknown(facts)))


def _title(facts: Facts) -> tuple[str, str]:
    names = [one.name for one in (*facts.sweeps, *facts.students, *facts.shipped, *facts.caches)]
    title = f"Report on {names[0]}" if len(names) == 1 else "Report on distilled models"
    counts = {
        "student": len(facts.students),
        "shipped model": len(facts.shipped),
        "sweep": len(facts.sweeps),
        "cache": len(facts.caches),
        "taught teacher": len(facts.teachers),
    }
    told = [f"{n} {what}{'s' if n > 1 else ''}" for what, n in counts.items() if n]
    return title, f"{', '.join(told) or 'Nothing'}, from what their folders hold."


def _unknown(facts: Facts) -> Section:
    notes = tuple(facts.unknown())
    part: Part = Points(notes) if notes else Text("Nothing that a report asks for is missing.")
    return Section("Not known", (part,))


def _scored(
    facts: Facts, file: Any, teacher: SharedTeacher | None, options: Any, progress: Progress
) -> Facts:
    """The facts with scores of all finished students on a file."""
    ready = [one for one in facts.students if one.metrics]
    if not ready:
        raise ConfigError("--eval scores students, and none of those named is trained")
    errors: list[KdcacheError] = []
    scored: list[StudentFacts] = []
    for student in facts.students:
        try:
            scored.append(_with_scores(student, file, teacher, options, progress))
        except KdcacheError as error:
            errors.append(error)
            scored.append(replace(student, notes=(*student.notes, f"not scored: {error}")))
    if len(errors) == len(ready):
        raise errors[0]
    return replace(facts, students=tuple(scored))


def _with_scores(
    student: StudentFacts,
    file: Any,
    teacher: SharedTeacher | None,
    options: Any,
    progress: Progress,
) -> StudentFacts:
    if not student.metrics:
        return student
    found = evaluate(student.folder, file, teacher=teacher, progress=progress, **options)
    return replace(student, evaluation={"file": short(file), **found})
