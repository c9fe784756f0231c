"""What students and their teacher are once they are shipped: folders, sizes, latencies, scores."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, ModelError
from kdcache.manifest import Json
from kdcache.models import load_config
from kdcache.models.cached_teacher import teacher_folder
from kdcache.models.tokenizer import save_tokenizer
from kdcache.progress import quiet
from kdcache.shipping.run import KINDS, ship_both
from kdcache.store import Cache
from kdcache.store.io.durable_writes import remove_tree, replace_synced
from kdcache.training.evaluation import content_digest, same_columns

SHIPPED, REPORT = "shipped", "report.json"
TEACHER = "teacher"
ABOUT = ("file", "documents", "threads", "calls", "timed")


def ship_options(cache: Cache, measure: str | None, *, trust_remote_code: bool) -> Json:
    """What `ship` is told of every student: the file it is measured on, read as in training."""
    columns = {} if measure is None else same_columns(cache.plan.config.corpus, measure)
    return {"measure": measure, **columns, "trust_remote_code": trust_remote_code}


def ship_student(model: str, folder: Path, options: Json) -> Json:
    """Ship the model in the folder `model` to the folders "fp32" and "int8" in `folder`.

    Returns, and keeps beside them, what was measured of each; "kept" of the options is the folder
    for what documents add to the scores, or None.

    Raises what `ship` does.
    """
    remove_tree(folder)  # of one that was stopped
    folder.mkdir(parents=True)
    fp32, int8 = (folder / kind for kind in KINDS)
    kept = None if options["kept"] is None else Path(options["kept"])
    given = {**options, "kept": kept, "progress": quiet}
    reports = ship_both(model, fp32=fp32, int8=int8, **given)
    told = _told(reports)
    replace_synced(folder / REPORT, (json.dumps(told, indent=1) + "\n").encode())
    return told


def ship_teacher(cache: Cache, named: str | None, folder: Path, options: Json) -> Json:
    """The same for the teacher: the folder that is named, or the one of the cache.

    It reads as many tokens of a text as students do.

    Raises what `ship` does, and ModelError where the teacher is nowhere.
    """
    longest = {"max_length": cache.plan.config.max_length}
    with tempfile.TemporaryDirectory() as scratch:
        source = teachers_folder(cache, named, Path(scratch))
        return ship_student(source, folder, options | longest)


def teachers_folder(cache: Cache, named: str | None, scratch: Path) -> str:
    """The folder of the teacher: the one that is named, else one in `scratch`, or where it lies."""
    source = named or teacher_folder(cache, scratch)
    if source == str(scratch):
        save_tokenizer(cache, scratch)
    return source


def require_teacher(cache: Cache, named: str | None, *, trust_remote_code: bool) -> None:
    """Raise ConfigError where the teacher, which is in every table, is not there to be shipped."""
    if named is not None:
        load_config(named, trust_remote_code=trust_remote_code)
        return
    source = str(cache.manifest["teacher"]["source"])
    kept = any(n.startswith("teacher/") and n.endswith(".safetensors") for n in cache.files)
    if not kept and Path(source).is_absolute() and not Path(source).is_dir():
        raise ConfigError(
            f"the teacher's folder {source} is gone, and students that are shipped, or sliced "
            "(--by), are held against it: name it with --teacher, or leave both out (--no-ship)"
        )


def teachers_files(named: str | None) -> Json:
    """What tells the teacher that is named from others: SHA-256 of its files; {}: the cache's."""
    if named is None:
        return {}
    files = [path for path in sorted(Path(named).glob("*")) if path.is_file()]
    return {path.name: content_digest(path) for path in files} or {"name": named}


def read_report(folder: Path) -> Json | None:
    """What was measured of a model shipped into a folder; None: it is not, or not to its end."""
    try:
        found: Json = json.loads((folder / REPORT).read_text("utf-8"))
        return found
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ModelError(f"{folder / REPORT} is damaged: {error}; remove {folder}") from error


def _told(reports: Json) -> Json:
    """Of both reports what a table needs."""
    report = reports[KINDS[0]]
    kinds: dict[str, Any] = {kind: {"bytes": reports[kind]["bytes"]} for kind in KINDS}
    for kind, row in report.get("models", {}).items():
        kinds[kind] |= row
    about = {name: report[name] for name in ABOUT if name in report}
    return {"parameters": report["parameters"], "kinds": kinds, "about": about}
