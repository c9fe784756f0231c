"""Profile a run: some steps of it as `train` takes them, measured, and nothing kept."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from kdcache.bench.report import new_report
from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json
from kdcache.profiling.ops import op_rows
from kdcache.profiling.recorder import Recorded, Recorder, clock_of
from kdcache.profiling.result import TRACE_FILE, ProfileResult
from kdcache.profiling.session import Measured, Profiled
from kdcache.profiling.turns import OURS
from kdcache.progress import Shown, shown
from kdcache.spans import watched
from kdcache.store import Cache, Place
from kdcache.store.io.durable_writes import require_writable
from kdcache.training.arguments import meant_fields
from kdcache.training.fitting import fit
from kdcache.training.mixture import Mixture, open_mixture
from kdcache.training.options import asked
from kdcache.training.progressive import by_layer
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.run import Run
from kdcache.training.run_folder import Standing
from kdcache.training.train import in_students_words
from kdcache_kernels._backends import plain_torch

STEPS = 20


def profile(
    cache: Place | Cache | Sequence[Place | Cache] | Mapping[str, Place | Cache],
    *,
    recipe: str | Path | Recipe = "kd",
    steps: int = STEPS,
    stage: str | None = None,
    student: str | Path | nn.Module | None = None,
    init_from_teacher: Sequence[int] | str | None = None,
    config: str | Path | None = None,
    same_tokenizer: bool = False,
    trust_remote_code: bool = False,
    vocabulary: int | str | Path | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    mix: Sequence[float] | str | None = None,
    out: str | Path | None = None,
    progress: Shown = None,
) -> ProfileResult:
    """Measure where the time of a step of `train` goes, for this cache, recipe and student.

    The steps are those of `train`. By turns on the same documents, they are taken as they are, with
    losses that operations of torch's own work out, and, where the losses take a language model's
    head, with its logits made whole. Before any time is told, the losses of a batch are the same
    by all ways. Nothing is kept of the student, and nothing written but to `out`. A module that is
    given as the student is trained, in place.

    Args:
        cache, recipe, student, init_from_teacher, config, same_tokenizer, trust_remote_code,
            vocabulary, seed, batch_size, device, overrides, mix: as `train` takes them. A dev set
            of the recipe is left out.
        steps: of each way, that are timed; some more warm up, and are measured for memory and ops.
        stage: of a recipe with stages; the first if not given.
        out: folder for `profile.json`, `profile.png` and `trace.json`, a Chrome trace of one step.

    Raises:
        ConfigError: cache and student cannot serve the recipe, before anything is loaded; several
            processes, or a device that is neither a CPU nor a CUDA GPU.
        CacheError: `out` cannot be written.
        IncompleteError: the cache lacks parts.
        MismatchError: caches do not go together.
        ModelError: a student does not fit; the losses of a batch differ between the ways.
    """
    progress = shown(progress)
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"steps (--steps) is a whole number, 1 or more; got {steps!r}")
    if out is not None:
        require_writable(Path(out))
    mixture = open_mixture(cache, mix)
    mixture.require_whole(allow_partial=False)
    given = {"seed": seed, "batch_size": batch_size, "device": device}
    chosen = asked(
        load_recipe(recipe, overrides, meant_fields()),
        given,
        overrides,
        vocabulary,
        student=student,
        layers=init_from_teacher,
        config=config,
        same_tokenizer=same_tokenizer,
    )
    module = student if isinstance(student, nn.Module) else None
    mixture = in_students_words(mixture, chosen, module, progress, trust=trust_remote_code)
    chosen = by_layer(chosen, mixture.first, module, trust_remote_code=trust_remote_code)
    name, one = _stage(chosen, stage)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(
            mixture.first,
            None,
            one,
            Path(scratch) / "profile",
            stage=name,
            standing=Standing(),
            chooses=False,
            progress=progress,
            mixture=mixture,
            module=module,
            trust_remote_code=trust_remote_code,
        )
        if run.args.world_size > 1:
            raise ConfigError(
                f"profile measures one process, and {run.args.world_size} train together: start "
                "it without torchrun"
            )
        clock = clock_of(run.args.device)
        trace = None if out is None else Path(scratch) / TRACE_FILE
        measured, recorder = Measured(), Recorder(clock)
        make = partial(Profiled, steps=steps, trace=trace, measured=measured, recorder=recorder)
        with watched(recorder.part), plain_torch(on=False):  # so again where a step is stopped
            fit(run, run.prepare(None), [], make)
        result = ProfileResult(_report(run, measured, recorder, mixture, name, steps))
        if out is not None:
            result.save(out, trace)
    return result


def _stage(recipe: Recipe, wanted: str | None) -> tuple[str, Recipe]:
    """The stage to profile and its recipe, which trains to no checkpoint."""
    names = [stage.name for stage in recipe.stages] or [""]
    if wanted is not None and not recipe.stages:
        raise ConfigError(f"recipe {recipe.name} has no stages: leave --stage out")
    name = names[0] if wanted is None else one_of("stage", wanted, names)
    one = recipe.in_stages()[names.index(name)]
    training = {**one.training, "max_steps": 1, "save_strategy": "no"}
    return name, dataclasses.replace(one, training=training, dev=None)


def _report(
    run: Run, measured: Measured, recorder: Recorder, mixture: Mixture, stage: str, steps: int
) -> Json:
    """All that was measured, as a report of the kind that `kdcache bench` writes."""
    args = run.args
    ours = statistics.median(one.seconds for one in measured.steps[OURS.name])
    rows = [
        _row(name, measured.steps[name], measured, ours, args.device.type)
        for name in measured.losses
    ]
    return new_report(
        "profile",
        device=str(args.device),
        settings={
            "caches": [str(one.path) for one in mixture.caches],
            "recipe": run.recipe.name,
            "stage": stage or None,
            "student": {name: str(value) for name, value in run.recipe.student.items()},
            "batch_size": args.per_device_train_batch_size,
            "accumulation": args.gradient_accumulation_steps,
            "documents_per_step": statistics.fmean(measured.documents),
            "tokens_per_step": statistics.fmean(measured.tokens),
            "steps": steps,
        },
        key=["way", "device"],
        better={"seconds": "lower", "peak_bytes": "lower"},
        rows=rows,
        ops=op_rows(measured.calls, recorder.clock, args.device),
    )


def _row(
    name: str, steps: Sequence[Recorded], measured: Measured, ours: float, device: str
) -> Json:
    """A way to take the steps; its parts are means, so that they add up to `mean_seconds`."""
    median = statistics.median(one.seconds for one in steps)
    parts = list(dict.fromkeys(part for one in steps for part in one.parts))
    beside = list(dict.fromkeys(part for one in steps for part in one.beside))
    return {
        "way": name,
        "device": device,
        "seconds": median,
        "mean_seconds": statistics.fmean(one.seconds for one in steps),
        "times": median / ours,
        "peak_bytes": measured.memory[name],
        "loss": measured.losses[name],
        "parts": {p: statistics.fmean(one.parts.get(p, 0.0) for one in steps) for p in parts},
        "beside": {p: statistics.fmean(one.beside.get(p, 0.0) for one in steps) for p in beside},
    }
