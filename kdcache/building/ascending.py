"""A second round of caching: what a teacher says where a student and it differ more."""

from __future__ import annotations

from pathlib import Path

from kdcache.building.builder import as_given, create_cache
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
from kdcache.tasks import Task

SIGNALS = ("logits:dense", "embeddings:positions=all,dtype=fp16")


def ascend(
    cache: Place | Cache,
    *,
    student: str | Path,
    teacher: str | Path,
    out: Place,
    eta: float = 1.0,
    steps: int = 1,
    device: str = "auto",
    batch_tokens: int = 8192,
    progress: Shown = None,
) -> Cache:
    """Write a cache of the documents of `cache` at points up the gradient of the squared difference
    between a student's logits and its teacher's: what the teacher says there, and the points.

    Backward-pass distillation (Jafari et al. 2023, arXiv:2301.12006): the student is trained on
    both caches, `train([cache, points], recipe="backward-kd", student=...)`, and reads documents
    of the second at their points, in the place of its embedding output. Points are its own
    embedding output, moved, and the teacher reads them as they are: the student's embeddings have
    to be in the teacher's space, as those of a student made of its layers are.

    Args:
        student: folder or hub name of what was trained from the cache so far.
        teacher: folder or hub name of the cache's teacher, which says what it says at the points.
        out: folder or URL; a call that was stopped goes on, as in `build`.
        eta: how far, in gradients of the sum over the outputs of a document.
        steps: how many gradients are followed, one after the other; the paper takes a few.
        device, batch_tokens: as in `build`.

    Raises:
        ConfigError: a setting, a task or a student that cannot be.
        ModelError: a model cannot be loaded, or has no list of blocks.
        MismatchError: `teacher` is not the cache's, or `out` holds another cache.
        CacheError: `out` cannot be written.
    """
    source = cache if isinstance(cache, Cache) else open_cache(cache)
    task = source.plan.task
    _check(task, eta, steps)
    taught = load_teacher(teacher, task=task, device=device)
    pupil = load_teacher(student, task=task, device=device)
    _require_fit(source, taught, pupil, str(teacher), str(student))
    model = AtPoints(taught.model, pupil.model, task, eta=eta, steps=steps)
    identity = {**taught.identity, **_identity(taught, pupil, eta, steps)}
    both = Teacher(model, identity, taught.shape, taught.device)
    signals = as_given(parse_all(SIGNALS), taught.model.config, teacher)
    create_cache(locate(out), source.plan, both, signals, cached_tokenizer(source), False)
    fill(Writer(locate(out)), both, batch_tokens, shown(progress))
    return open_cache(out)


def _check(task: Task, eta: float, steps: int) -> None:
    if task.rows != "document":
        raise ConfigError(f"points are of documents that are classified; the task is {task}")
    if not 0 < eta < float("inf"):
        raise ConfigError(f"eta must be more than 0 and finite; got {eta}")
    if steps < 1:
        raise ConfigError(f"steps must be 1 or more; got {steps}")


def _require_fit(
    source: Cache, taught: Teacher, pupil: Teacher, teacher: str, student: str
) -> None:
    """Raise MismatchError for another teacher, ConfigError for a student of another shape."""
    if taught.identity["weights_sha256"] != source.manifest["teacher"]["weights_sha256"]:
        raise MismatchError(
            f"the weights in {teacher} are not those of the teacher of {source.path}: name its "
            "teacher"
        )
    for what in ("hidden", "outputs"):
        ours, theirs = getattr(pupil.shape, what), getattr(taught.shape, what)
        if ours != theirs:
            raise ConfigError(
                f"{student} reads points in its teacher's space, and has {what}={ours} where that "
                f"has {theirs}: take a student that was made of the teacher's layers"
            )


def _identity(taught: Teacher, pupil: Teacher, eta: float, steps: int) -> Json:
    """What tells a teacher at such points from itself, and from itself at others."""
    found = {"student": pupil.identity["weights_sha256"], "eta": eta, "steps": steps}
    whole = {"teacher": taught.identity["weights_sha256"], **found}
    return {
        "name": f"{taught.identity['name']} at points of {pupil.identity['name']}",
        "weights_sha256": digest(whole),
        AT_POINTS: found,
    }
