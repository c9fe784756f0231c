"""What is told of where models come from: tasks, corpora, teachers, caches, students, hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kdcache.building.words import fidelity_rows, signal_text
from kdcache.manifest import Json
from kdcache.rendering import Part, Section, Table, Text, both, show, size
from kdcache.rendering.parts import fields
from kdcache.reporting.caches import cache_of
from kdcache.reporting.facts import CacheFacts, Facts, StudentFacts
from kdcache.training.card import origin
from kdcache.training.curve_picture import curve_picture

NAMED = 12  # classes that a person still reads


def data_section(facts: Facts) -> Section:
    """Task and data of every cache."""
    rows = [(one.name, *_data(one)) for one in facts.caches]
    head = ("", "task", "documents", "tokens", "labelled", "classes", "longest", "reads", "labels")
    table = Table(head, tuple(rows)).turned()
    nothing = Text("No cache is known: nothing tells what the models read.")
    return Section("Task and data", (table,) if rows else (nothing,))


def _data(cache: CacheFacts) -> Iterator[str]:
    plan, told = cache.plan, (cache.described or {}).get("plan", {})
    corpus = plan.get("corpus") or {}
    yield str(plan.get("task", "not known"))
    rows, documents = corpus.get("documents"), told.get("documents")
    apart = documents is not None and documents != rows
    yield f"{show(documents)} (from {show(rows)} in the corpus)" if apart else show(rows)
    yield show(told.get("tokens"))
    yield f"{told['labelled']:,} of {told['documents']:,}" if "labelled" in told else "-"
    yield _classes(told.get("classes") or corpus.get("classes") or plan.get("classes") or ())
    yield f"{show(plan.get('max_length'))} tokens"
    yield show(corpus.get("text_columns"))
    yield show(corpus.get("label_column") or None)


def _classes(names: Iterable[Any]) -> str:
    known = [str(name) for name in names]
    more = ", ..." if len(known) > NAMED else ""
    return f"{len(known)}: {', '.join(known[:NAMED])}{more}" if known else "-"


def teacher_section(facts: Facts) -> Section:
    """The teachers, as caches and `teach` tell of them."""
    found = {str(one.teacher.get("weights_sha256")): one.teacher for one in facts.caches}
    rows = [
        (
            str(one.get("name", "not known")),
            str(one.get("class", "-")),
            show(one.get("parameters")),
            f"{one.get('dtype', '-')}, {one.get('attention', '-')} attention",
        )
        for one in found.values()
    ]
    parts: list[Part] = []
    if rows:
        parts.append(Table(("", "class", "parameters", "run in"), tuple(rows)))
    for taught in facts.teachers:
        parts.append(Text(f"{taught.name} was taught by `kdcache teach`."))
        parts.append(fields(_taught(taught.metrics)))
    return Section("Teacher", tuple(parts) or (Text("Nothing is known of a teacher."),))


def _taught(metrics: Json) -> Iterator[tuple[str, str]]:
    data, chosen = metrics.get("data") or {}, metrics.get("chosen") or {}
    if "train" in data:
        yield "taught on", f"{data['train']:,} labelled documents"
        yield "chosen on", f"{data['dev']:,} documents"
    if chosen:
        yield "learning rate", f"{chosen['learning_rate']:g}"
        yield "epoch", str(chosen["epoch"])
    if "encoder" in metrics:
        yield "encoder", f"`{metrics['encoder']['name']}`"


def students_section(facts: Facts) -> Section:
    """Every student: how it was made, what its training took, its curves."""
    parts: list[Part] = []
    if facts.students:
        parts.append(_trainings(facts.students))
    parts += [_student(one, facts) for one in facts.students]
    return Section("Students", tuple(parts) or (Text("No student was named."),))


def _trainings(students: Iterable[StudentFacts]) -> Table:
    rows = [(one.name, one.recipe_name, show(one.parameters), *_training(one)) for one in students]
    head = ("", "recipe", "parameters", "steps", "epochs", "seconds", "documents/s")
    return Table((*head, "waiting for data", "peak memory"), tuple(rows), figures=True)


def _training(student: StudentFacts) -> Iterator[str]:
    metrics = student.metrics
    for name in ("steps", "epochs", "seconds", "documents_per_second"):
        yield show(metrics.get(name))
    yield f"{metrics['data_wait_share']:.1%}" if "data_wait_share" in metrics else "-"
    yield size(metrics["peak_rss_bytes"]) if "peak_rss_bytes" in metrics else "-"


def _student(student: StudentFacts, facts: Facts) -> Section:
    cache = cache_of(student, facts.caches)
    rows = list(origin(student.record, student.recipe, student.metrics))
    if student.recipe is None:
        rows.insert(1, ("recipe", student.recipe_name))
    told = fields([*rows, ("cache", cache.name if cache else "not known")])
    number = facts.students.index(student)
    given: Any = {"name": f"curves-{number}", "of": student.name}
    picture = curve_picture(student.log, student.metrics.get("dev"), **given)
    curves: Part = picture or Text("There is no training log, and so there are no curves.")
    return Section(student.name, (told, curves), level=3)


def cache_section(facts: Facts) -> Section:
    """Bytes and fidelity of every cache."""
    parts = [Section(one.name, tuple(_cache(one)), level=3) for one in facts.caches]
    return Section("Cache", tuple(parts) or (Text("No cache is known."),))


def _cache(cache: CacheFacts) -> Iterator[Part]:
    told = cache.described
    if told:
        done = told["completeness"]
        state = "complete" if done["complete"] else "incomplete"
        yield fields(
            {
                "size": both(told["total_bytes"]),
                "state": f"{state}, {done['committed']:,} of {done['parts']:,} parts",
                **{f"signal {name}": signal_text(one) for name, one in cache.signals.items()},
                "made with": ", ".join(f"{name} {v}" for name, v in told["software"].items()),
            }.items()
        )
        documents = told["plan"]["documents"]
        rows = tuple(_array(array, documents) for array in told["arrays"])
        yield Table(("array", "shape", "dtype", "size", "a document"), rows, figures=True)
    else:
        yield Text("Its bytes are not known: its folder is not among those named.")
        yield fields((f"signal {n}", signal_text(one)) for n, one in cache.signals.items())
    if cache.fidelity:
        figures = tuple(fidelity_rows(cache.fidelity))
        yield Table(("fidelity of", "measure", "value", "unit"), figures)
    else:
        yield Text("Its fidelity is not known before it is complete.")


def _array(array: Json, documents: int) -> tuple[str, ...]:
    shape = " × ".join(map(str, array["shape"]))
    each = f"{array['bytes'] / max(documents, 1):,.0f} B"
    return array["name"], shape, array["dtype"], size(array["bytes"]), each


def hash_section(facts: Facts) -> Section:
    """SHA-256 of everything that has one."""
    rows = [row for one in facts.caches for row in _of_cache(one)]
    rows += [row for one in facts.students for row in _of_student(one)]
    nothing = Text("Nothing here has a hash.")
    return Section("Hashes", (fields(rows),) if rows else (nothing,))


def _of_cache(cache: CacheFacts) -> Iterator[tuple[str, str]]:
    corpus, tokenizer = cache.plan.get("corpus") or {}, cache.plan.get("tokenizer") or {}
    known = {
        "plan": cache.plan_sha256,
        "contents": cache.contents,
        "corpus": corpus.get("sha256"),
        "tokenizer": tokenizer.get("sha256"),
        "the teacher's weights": cache.teacher.get("weights_sha256"),
    }
    yield from ((f"{cache.name}: {what}", f"`{value}`") for what, value in known.items() if value)


def _of_student(student: StudentFacts) -> Iterator[tuple[str, str]]:
    for file, one in student.weights.items():
        yield f"{student.name}: {file}, {size(one['bytes'])}", f"`{one['sha256']}`"
    record = student.record
    known = {
        "contents of its cache": record.get("contents"),
        "dev documents": (record.get("dev") or {}).get("sha256"),
    }
    yield from ((f"{student.name}: {of}", f"`{value}`") for of, value in known.items() if value)
