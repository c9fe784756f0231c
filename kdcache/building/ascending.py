"""A second round of caching: what a teacher says at points of its embedding space, not at texts."""

from __future__ import annotations

from pathlib import Path

from kdcache.building.asked import as_given
from kdcache.building.creating import create_cache
from kdcache.building.filling import fill
from kdcache.errors import ConfigError, MismatchError
from kdcache.manifest import Json, digest
from kdcache.models import Teacher, load_teacher
from kdcache.models.ascent import AtPoints
from kdcache.models.token_map import cached_tokenizer
from kdcache.progress import Shown, shown
from kdcache.signals import parse_all
from kdcache.store import Cache, Place, Writer, locate, open_cache
from kdcache.store.format.manifest_schema import AT_POINTS

DEFAULTS = {False: (1.0, 1), True: (0.3, 10)}
"""How far and how many steps, by whether points are at the teacher's boundary."""
SIGNALS = ("logits:dense", "embeddings:positions=all,dtype=fp16")


def ascend(
    cache: Place | Cache,
    *,
    teacher: str | Path,
    out: Place,
    student: str | Path | None = None,
    eta: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    batch_tokens: int = 8192,
    progress: Shown = None,
) -> Cache:
    """Write a cache of the documents of `cache` at points that are found by gradients: what the
    teacher says there, and the points.

    For a `student`, they lie up the gradient of the squared difference between its logits and its
    teacher's. Backward-pass distillation (Jafari et al. 2023, arXiv:2301.12006): the student is
    trained on both caches, `train([cache, points], recipe="backward-kd", student=...)`, and reads
    documents of the second at their points, in the place of its embedding output.

    Without one, they lie at the teacher's decision boundary: down its lead over its second class
    until it names that (Heo et al. 2019, arXiv:1805.05532). Both caches are merged, and the recipe
    "bss" reads documents of a step at the texts and at the points.

    Points are embedding outputs, moved, and the teacher reads them as they are: a student's
    embeddings have to be in its space, as those of a student made of its layers are.

    Args:
        teacher: folder or hub name of the cache's teacher, which says what it says at the points.
        out: folder or URL; a call that was stopped goes on, as in `build`.
        student: folder or hub name of what was trained from the cache so far; None: points at the
            teacher's boundary.
        eta: how far. For a student, in gradients of the sum over the outputs of a document; None:
            1. At the boundary, as a share of the lead, along a gradient of length 1; None: 0.3.
        steps: how many gradients are followed, one after the other; None: 1 for a student, of which
            the paper takes a few, and 10 at the boundary, where those it takes to get there count.
        device, batch_tokens: as in `build`.

    Raises:
        ConfigError: a setting, a task or a student that cannot be.
        ModelError: a model cannot be loaded, or has no list of blocks.
        MismatchError: `teacher` is not the cache's, or `out` holds another cache.
        CacheError: `out` cannot be written.
    """
    source = cache if isinstance(cache, Cache) else open_cache(cache)
    task = source.plan.task
    far, count = DEFAULTS[student is None]
    eta, steps = far if eta is None else eta, count if steps is None else steps
    _check(source, eta, steps, boundary=student is None)
    taught = load_teacher(teacher, task=task, device=device)
    _require_teacher(source, taught, str(teacher))
    pupil = None if student is None else load_teacher(student, task=task, device=device)
    if pupil is not None:
        _require_fit(taught, pupil, str(student))
    begins = None if pupil is None else pupil.model
    model = AtPoints(taught.model, begins, task, eta=eta, steps=steps)
    identity = {**taught.identity, **_identity(taught, pupil, eta, steps)}
    both = Teacher(model, identity, taught.shape, taught.device)
    signals = as_given(parse_all(SIGNALS), taught.model.config, teacher)
    create_cache(locate(out), source.plan, both, signals, cached_tokenizer(source), False)
    fill(Writer(locate(out)), both, batch_tokens, shown(progress))
    return open_cache(out)


def _check(source: Cache, eta: float, steps: int, *, boundary: bool) -> None:
    task, kind = source.plan.task, source.plan.label_kind
    if task.rows != "document":
        raise ConfigError(f"points are of documents that are classified; the task is {task}")
    if source.at_points:
        raise ConfigError(
            f"the cache {source.path} is one of points: name the cache that they were found from"
        )
    if boundary and (kind.activation != "softmax" or source.shape.outputs < 2):
        raise ConfigError(
            "a boundary lies between classes of which a document has one; the teacher is a "
            f"{kind.called}: name a student, and points are found where it differs"
        )
    if not 0 < eta < float("inf"):
        raise ConfigError(f"eta must be more than 0 and finite; got {eta}")
    if steps < 1:
        raise ConfigError(f"steps must be 1 or more; got {steps}")


def _require_teacher(source: Cache, taught: Teacher, teacher: str) -> None:
    """Raise MismatchError for another teacher than the cache's."""
    if taught.identity["weights_sha256"] != source.manifest["teacher"]["weights_sha256"]:
        raise MismatchError(
            f"the weights in {teacher} are not those of the teacher of {source.path}: name its "
            "teacher"
        )


def _require_fit(taught: Teacher, pupil: Teacher, student: str) -> None:
    """Raise ConfigError for a student of another shape."""
    for what in ("hidden", "outputs"):
        ours, theirs = getattr(pupil.shape, what), getattr(taught.shape, what)
        if ours != theirs:
            raise ConfigError(
                f"{student} reads points in its teacher's space, and has {what}={ours} where that "
                f"has {theirs}: take a student that was made of the teacher's layers"
            )


def _identity(taught: Teacher, pupil: Teacher | None, eta: float, steps: int) -> Json:
    """What tells a teacher at such points from itself, and from itself at others."""
    of = {} if pupil is None else {"student": pupil.identity["weights_sha256"]}
    found = {**of, "eta": eta, "steps": steps}
    where = "its boundary" if pupil is None else f"points of {pupil.identity['name']}"
    whole = {"teacher": taught.identity["weights_sha256"], **found}
    return {
        "name": f"{taught.identity['name']} at {where}",
        "weights_sha256": digest(whole),
        AT_POINTS: found,
    }
