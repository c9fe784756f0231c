"""Points on the boundary of a teacher, and students that read texts and points in a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kdcache
from kdcache.errors import ConfigError
from kdcache.losses import Moment, Schedule
from kdcache.models import load_teacher, run
from kdcache.models.ascent import supporting
from kdcache.models.points import POINTS
from kdcache.signals import EMBEDDINGS, LOGITS
from kdcache.store import Cache
from kdcache.training.own_loop import make_objective, make_student
from kdcache.training.train import train
from kdcache_cli.main import main
from tests.test_trainer import log_of, stopped_and_resumed

TASK = "text-classification"
FAST = ("training.max_steps=8", "training.logging_steps=1", "training.learning_rate=1e-3")


@pytest.fixture(scope="module")
def boundary(cache: Cache, classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The session's cache at the boundary of its teacher, stopped and gone on with."""
    out = tmp_path_factory.mktemp("boundary") / "boundary.zarr"
    command = ["ascend", str(cache.path), "--teacher", str(classifier), "--out", str(out)]
    command += ["--eta", "20", "--steps", "4", "--quiet"]
    assert main(command) == 0
    before = (out / "commits").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "commits").stat().st_mtime_ns == before
    return kdcache.open_cache(out)


@pytest.fixture(scope="module")
def both(cache: Cache, boundary: Cache, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Texts and points of one plan."""
    out = tmp_path_factory.mktemp("both") / "both.zarr"
    kdcache.merge([cache.path, boundary.path], out)
    return kdcache.open_cache(out)


def test_a_document_goes_no_further_than_where_another_class_is_named() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-9.0, -9.0]], dtype=torch.float64)
    starts = torch.tensor([[[2.0, 1.0]], [[0.0, 5.0]]], dtype=torch.float64)
    calls: list[torch.Tensor] = []

    def says(states: torch.Tensor) -> torch.Tensor:
        calls.append(states.detach())
        return states[:, 0] @ weight.T

    points = supporting(starts, says, eta=1.0, steps=6)
    logits = says(points)
    assert (logits.argmax(1) == torch.tensor([1, 0])).all()
    assert torch.equal(calls[2][0], points[0])
    gap = (logits[:, 0] - logits[:, 1]).abs()
    assert (gap < torch.tensor([1.0, 5.0])).all()
    stuck = supporting(starts, says, eta=1e-3, steps=2)
    assert (says(stuck).argmax(1) == torch.tensor([0, 1])).all()
    assert not torch.equal(stuck, starts)


def test_the_teacher_is_less_sure_at_its_boundary_and_says_there_what_is_stored(
    cache: Cache, boundary: Cache, classifier: Path
) -> None:
    teacher, docs = load_teacher(classifier, task=TASK).model, cache.plan.docs[:40]
    batch = cache.batch(docs, [])
    start = run(teacher, batch, [LOGITS, EMBEDDINGS], task=TASK)
    moved = boundary.stored(docs, EMBEDDINGS).dense()
    there = batch.beside(**{POINTS: batch.at_tokens(moved)})
    said = run(teacher, there, [LOGITS], task=TASK)[LOGITS].detach()
    torch.testing.assert_close(boundary.stored(docs, LOGITS).values, said, rtol=1e-3, atol=1e-3)
    own = start[LOGITS].argmax(1, keepdim=True)
    lead = (one.gather(1, own) - one.topk(2, 1).values[:, 1:] for one in (start[LOGITS], said))
    before, after = (float(x.mean()) for x in lead)
    assert after < 0.5 * before
    assert float((said.argmax(1, keepdim=True) != own).float().mean()) > 0.5
    assert not torch.equal(moved, start[EMBEDDINGS].detach()[batch.mask])


def test_a_loss_at_points_is_of_what_the_student_says_there(both: Cache, classifier: Path) -> None:
    student = make_student(both, init_from_teacher=[1, 3]).eval()
    objective = make_objective(both, "bss", student)
    batch = both.batch(both.plan.docs[:6], objective.arrays)
    seen = objective.read(student, batch, objective.taps())
    _, terms = objective(seen, batch)
    (name,) = (name for name, view in both.views.items() if view.at_points)
    points = both.views[name]
    rows = points.stored(batch["docs"].numpy(), EMBEDDINGS).dense()
    there = batch.beside(**{POINTS: batch.at_tokens(rows)})
    said = run(student, there, [LOGITS], task=TASK)[LOGITS]
    soft = points.stored(batch["docs"].numpy(), LOGITS).values
    p, q = ((x / 3).log_softmax(-1) for x in (soft, said))
    wanted = (p.exp() * (p - q)).sum(1).mean().detach()
    torch.testing.assert_close(terms["boundary"], wanted)
    assert not torch.isclose(terms["kl"], wanted)
    named = make_objective(both, "bss", student, [f'losses.boundary.teachers=["{name}"]'])
    _, again = named(named.read(student, batch, named.taps()), batch)
    assert torch.equal(again["boundary"], terms["boundary"])
    with pytest.raises(ConfigError, match=r"take what objective\.read"):
        objective(run(student, batch, objective.taps(), task=TASK), batch)


def test_a_student_learns_at_both_and_goes_on_where_it_stopped(both: Cache, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": "bss", "init_from_teacher": [1, 3], "overrides": FAST}
    whole, _, _ = stopped_and_resumed(both, tmp_path, **options)
    weights = [entry["boundary.weight"] for entry in log_of(whole.folder)]
    assert [weights[0], *weights[5:]] == [2.0, 0.0, 0.0, 0.0]
    assert weights == sorted(weights, reverse=True)


@pytest.mark.slow
def test_points_change_what_a_student_says(both: Cache, tmp_path: Path) -> None:
    alone = ("training.learning_rate=1e-2", "losses.hard.weight=0", "losses.kl.weight=1")
    found = []
    for weight in (0, 20):
        changes = [*FAST, *alone, f"losses.boundary.weight={weight}"]
        options: dict[str, Any] = {"init_from_teacher": [1, 3], "overrides": changes}
        result = train(both, recipe="bss", out=tmp_path / str(weight), **options)
        model = load_teacher(result.folder, task=TASK).model
        with torch.no_grad():
            batch = both.batch(both.plan.docs, [])
            found.append(run(model, batch, [LOGITS], task=TASK)[LOGITS].argmax(1))
    assert float((found[0] == found[1]).float().mean()) < 0.995


def test_what_cannot_be_read_in_two_places_is_refused(
    cache: Cache, both: Cache, boundary: Cache, classifier: Path, tmp_path: Path
) -> None:
    def refused(match: str, source: Any, *more: str, **changes: Any) -> None:
        options = {"recipe": "bss", "init_from_teacher": [1, 3], **changes}
        with pytest.raises(ConfigError, match=match):
            train(source, out=tmp_path / "x", overrides=[*FAST, *more], **options)

    refused(r"losses.boundary learns at points, and no teacher .*kdcache ascend", cache)
    refused("was run at points: a student cannot", both, 'losses.kl.teachers="all"')
    new = {"init_from_teacher": None, "config": str(classifier)}
    refused(r"a configuration \(student.config\) has embeddings of a space", both, **new)
    refused("does not go with training.torch_compile", both, "training.torch_compile=true")
    with pytest.raises(ConfigError, match="is one of points"):
        kdcache.ascend(boundary, teacher="none", out=tmp_path / "x")
    with pytest.raises(ConfigError, match="until of a schedule is a share"):
        Schedule(start=1, stop=0, until=1.5)
    assert [Schedule(start=1, stop=0, until=0.5).at(Moment(n, 8, 0, 1)) for n in (0, 3, 7)] == [
        1.0,
        0.0,
        0.0,
    ]
