"""A sweep: students trained side by side, shipped one by one, and the one to take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.errors import ConfigError, require_path
from kdcache.progress import Shown, shown
from kdcache.sweeping.pool import Pool, threads_of

if TYPE_CHECKING:
    from kdcache.store import Cache, Place
    from kdcache.sweeping.result import SweepResult


def sweep(
    cache: Place | Cache,
    *,
    out: str | Path,
    grid: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    search: int | None = None,
    dev: str | Path | None = None,
    dev_split: float | str | None = None,
    dev_every: int | str | None = None,
    patience: int | None = None,
    eval_file: str | Path | None = None,
    teacher: str | Path | None = None,
    ship: bool = True,
    max_mb: float | None = None,
    max_ms: float | None = None,
    max_drop: float | None = None,
    by: str | Sequence[str] = (),
    workers: int = 1,
    threads: int | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    progress: Shown = None,
) -> SweepResult:
    """Train many students from `cache` into the folder `out`, ship them, and pick one.

    Started again in the same folder it trains the students that are not trained yet: one that was
    stopped goes on, one that failed is tried anew. With more seeds or axes, the students that both
    sweeps have are kept.

    Args:
        cache: one cache.
        out: a new folder, or that of a sweep of the same cache, dev set and evaluation.
        grid: axes and their values, or a TOML file of them: "recipe", where students come from
            ("layers" and "width" of the teacher's; or "student", "init_from_teacher" or "config"
            as `train` has them), "epochs", "lr", "batch_size", "seed", and any field of a recipe,
            such as "losses.kl.temperature". Students are all combinations.
        overrides: more axes, as texts: "layers=2,3". One takes the place of an axis of the grid.
        seeds: students of each setting, with the seeds 0 and on.
        search: settings that Optuna draws from the axes, of which some may be ranges
            ("training.learning_rate=1e-5..1e-3"), by their scores on the dev set.
        dev: labelled documents that students are chosen on, and, with `dev_split`, `dev_every` and
            `patience`, all that `train` says of it. Without, no student is picked.
        eval_file: labelled documents that students are scored on; no choice is made on them.
        teacher: folder of the teacher, to be shipped and measured too; else where the cache says.
        ship: ship every student and the teacher in float32 and int8 and measure them, one after
            the other, on `dev`, else on `eval_file`.
        max_mb: megabytes (1,000,000 bytes) that the student to pick may take.
        max_ms: milliseconds that it may take for one text on one thread.
        max_drop: points of the dev score that it may be below the teacher.
        by: columns of the file `dev` by whose values students are held against the teacher slice by
            slice, as in `evaluate`; `max_drop` then holds on each slice, too.
        workers: processes that train side by side.
        threads: of each; those of torch here, shared out, if not given.
        device: "auto", "cpu" or "cuda", as `train` has it.
        trust_remote_code: as `train` has it.

    Raises:
        ConfigError: axes or options that cannot work: before anything is trained.
        MissingExtraError: students are to be shipped, or searched, and a package is missing.
        MismatchError: the folder holds a sweep of another cache or dev set.
        IncompleteError: the cache lacks parts.
        CorpusError: a file cannot be read, or has no labels.
        ModelError: a student cannot be made, or the teacher is not there.
        CacheError: the folder cannot be written.
    """
    began = time.perf_counter()
    progress = shown(progress)
    require_path("the folder of a sweep", out, "path")
    for name, count in (("workers", workers), ("threads", 1 if threads is None else threads)):
        if count < 1:
            raise ConfigError(f"--{name} is 1 or more; got {count}")
    threads = threads_of(workers) if threads is None else threads
    with Pool(workers, threads) as pool:
        # Only now, while the workers import the same: that takes seconds.
        from kdcache.sweeping.asked import Asked
        from kdcache.sweeping.grid import read_grid
        from kdcache.sweeping.record import Limits
        from kdcache.sweeping.under_way import conducted, opened

        axes = read_grid(grid, overrides, seeds)
        known = opened(cache)
        asked = Asked(
            cache=known,
            grid=axes,
            train={
                "dev": None if dev is None else str(dev),
                "dev_split": dev_split,
                "dev_every": dev_every,
                "patience": patience,
                "eval_file": None if eval_file is None else str(eval_file),
                "device": device,
                "trust_remote_code": trust_remote_code,
            },
            count=search,
            limits=Limits(max_mb=max_mb, max_ms=max_ms, max_drop=max_drop),
            by=(by,) if isinstance(by, str) else tuple(dict.fromkeys(by)),
            ship=ship and known.plan.task.shipped,
            teacher=None if teacher is None else str(teacher),
            workers=workers,
            threads=threads,
        )
        if ship and not asked.ship:
            progress.say(
                f"models for {known.plan.task} are not shipped: sizes and times are left out"
            )
        return conducted(asked, Path(out), pool, progress, began)
