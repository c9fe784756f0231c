"""The folder of a run: what may be written where, what it holds when the run has ended."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.errors import ConfigError, MismatchError
from kdcache.manifest import Json, differences
from kdcache.models import save_tokenizer
from kdcache.models.teacher import most_tokens
from kdcache.models.together import homes
from kdcache.models.token_map import cached_tokenizer, token_map
from kdcache.models.tokenizer import serve_with
from kdcache.store import Cache
from kdcache.store.io.durable_writes import require_writable
from kdcache.training.curves import draw_curves
from kdcache.training.parts import Parts, contents_of
from kdcache.training.recipe import Recipe, load_recipe

FOR_PEOPLE = ("description", "paper", "needs")  # what of a recipe sets nothing
CHECKPOINTS, STAGES = "checkpoints", "stages"
RECIPE, CACHE, METRICS, LOG, CURVES = (
    "recipe.toml",
    "cache.json",
    "metrics.json",
    "training_log.json",
    "curves.png",
)


def cache_identity(cache: Cache, parts: Parts) -> Json:
    """What a student was trained from; `parts` is None for all of a cache."""
    record = cache.manifest
    words = {"words": cache.plan.config.tokenizer["sha256"]} if cache.reworded else {}
    kept = cache.kept
    tokens = {} if kept is None else {"kept_tokens": {"rows": kept.rows, "sha256": kept.sha256}}
    return {
        **words,
        **tokens,
        "plan": record["plan"]["sha256"],
        "plan_config": record["plan"]["config"],
        "contents": contents_of(cache, parts),
        "parts": parts,
        "teacher": _portable(record["teacher"]),
        "signals": record["signals"],
        "fidelity": cache.fidelity,
    }


def _portable(teacher: Json) -> Json:
    """A teacher's identity without the place it lay at: a student goes to other machines."""
    return {name: value for name, value in teacher.items() if name != "source"}


class Standing(NamedTuple):
    """Where the training in a folder stands.

    Attributes:
        done: stages that are over.
        checkpoint: the last of the stage after these; None: it begins anew.
        begun: whether there is anything to go on from.
    """

    done: int = 0
    checkpoint: Path | None = None

    @property
    def begun(self) -> bool:
        return self.done > 0 or self.checkpoint is not None


def place_of(folder: Path, stage: str) -> Path:
    """Where the checkpoints of a stage lie; "" is the only one of a recipe without stages."""
    return folder / CHECKPOINTS / (f"stage-{stage}" if stage else "")


def stage_folder(folder: Path, stage: str) -> Path:
    """Where a stage that is over is told of, with the student as it was, but after the last one."""
    return folder / STAGES / stage


def _standing(folder: Path, recipe: Recipe) -> Standing:
    names = [stage.name for stage in recipe.stages] or [""]
    over = [bool(name) and (stage_folder(folder, name) / METRICS).exists() for name in names]
    done = over.index(False) if False in over else len(over) - 1
    return Standing(done, last_checkpoint(place_of(folder, names[done])))


def last_checkpoint(place: Path) -> Path | None:
    """The last checkpoint in a folder of them that was written to its end."""
    found = [
        (int(path.parent.name.removeprefix("checkpoint-")), path.parent)
        for path in place.glob("checkpoint-*/trainer_state.json")
    ]
    return max(found)[1] if found else None


def check_folder(
    folder: Path,
    recipe: Recipe,
    cache: Cache,
    parts: Parts,
    *,
    resume: bool,
    several: Json | None = None,
) -> Standing:
    """Where the run to be resumed stands, or that a new one begins.

    Raises ConfigError if the folder holds something a new run would overwrite, or nothing to
    resume; MismatchError if the run to be resumed had another recipe or cache.
    """
    standing = _standing(folder, recipe)
    if (folder / METRICS).exists():
        raise ConfigError(
            f"{folder} already holds a trained model; choose another folder, or remove it"
        )
    if resume:
        if not standing.begun:
            raise ConfigError(f"{folder} holds no checkpoint to resume from; train without resume")
        _require_same(folder, recipe, cache_identity(cache, parts) | {"several": several})
    elif standing.begun or begun(folder):
        raise ConfigError(
            f"{folder} holds a run stopped after {_last(standing, recipe)}; continue it "
            "with resume (--resume), or choose another folder"
        )
    elif folder.exists() and (not folder.is_dir() or _foreign(folder)):
        raise ConfigError(f"{folder} exists and is not an empty folder; choose another")
    require_writable(folder)
    return standing


def begun(folder: Path) -> bool:
    """Whether there is anything of a run in a folder that can be resumed, whatever its recipe."""
    return (folder / STAGES).exists() or any((folder / CHECKPOINTS).glob("**/trainer_state.json"))


def _last(standing: Standing, recipe: Recipe) -> str:
    """What a run has come to, in words."""
    if not standing.begun:
        return "a stage of another recipe"
    if standing.checkpoint is not None:
        return standing.checkpoint.name.replace("-", " ")
    return f"stage {recipe.stages[standing.done - 1].name}"


def _foreign(folder: Path) -> bool:
    ours = {CHECKPOINTS, RECIPE, CACHE, STAGES}
    return any(path.name not in ours for path in folder.iterdir())


def _require_same(folder: Path, recipe: Recipe, now: Json) -> None:
    stored, wanted = load_recipe(folder / RECIPE).to_json(), recipe.to_json()
    for table in (stored, wanted):
        for words in FOR_PEOPLE:
            del table[words]
        for training in [table, *table.get("stages", [])]:  # a step may be cut otherwise
            training["training"].pop("per_device_train_batch_size", None)
            training["data"].pop("points", None)  # which refuses, and sets nothing
        places = [table.get("dev"), *(_weights(one) for one in [table, *table.get("stages", [])])]
        for place in filter(None, places):
            for name in ("file", "files"):  # what they hold is asked for, not where they lie
                place.pop(name, None)
    identity = read_json(folder / CACHE)
    found = differences(stored, wanted)
    identity["teacher"] = _portable(identity["teacher"])
    compared = {"plan", "contents", "teacher", "signals", "several", "words", "kept_tokens"}
    found += differences(
        {f"cache.{key}": identity.get(key) for key in compared},
        {f"cache.{key}": now.get(key) for key in compared},
    )
    if found:
        name, have, want = found[0]
        raise MismatchError(
            f"{folder} holds a run with {name} = {have!r}; now it is {want!r}: resume with the "
            "settings it was started with, or choose another folder"
        )


def _weights(table: Json) -> Json:
    """How a recipe, or a stage, weighs documents, if that is a table."""
    found = table["data"].get("example_weights")
    return found if isinstance(found, dict) else {}


def require_same_weights(folder: Path, stage: str, record: list[Json]) -> None:
    """Raise MismatchError if a stage of the run to be resumed was to be weighed by other values."""
    stored = read_json(folder / CACHE).get("example_weights", {}).get(stage, [])
    if stored != record:
        columns = ", ".join(dict.fromkeys(name for one in [*stored, *record] for name in one))
        raise MismatchError(
            f"{folder} holds a run that weighs documents by other values of {columns}: put the "
            "file back as it was (data.example_weights.file), or choose another folder"
        )


def require_same_dev(folder: Path, dev: Json) -> None:
    """Raise MismatchError if the run to be resumed was scored on other documents."""
    stored = read_json(folder / CACHE).get("dev", {})
    if found := differences({"dev": stored}, {"dev": dev}):
        name, have, want = found[0]
        raise MismatchError(
            f"{folder} holds a run with {name} = {have!r}; now it is {want!r}: its dev set has "
            "changed since it was started; put that back, or choose another folder"
        )


def start_folder(
    folder: Path,
    recipe: Recipe,
    cache: Cache,
    parts: Parts,
    dev: Json | None,
    several: Json | None = None,
    weights: Json | None = None,
) -> None:
    """Write what the run is made of, so that it can be resumed as it was started.

    `weights` is what the documents of a stage are weighed by, by its name.
    """
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(recipe.to_toml(), "utf-8")
    record = _cache_record(cache, parts)
    if several is not None:
        record["several"] = several
    if weights:
        record["example_weights"] = weights
    write_json(folder / CACHE, record if dev is None else {**record, "dev": dev})


def _cache_record(cache: Cache, parts: Parts) -> Json:
    told = {
        "vocabulary": token_map(cached_tokenizer(cache).plain).sha256,
        "tokens": cache.plan.tokens,
        "teachers": [cache.teacher] if cache.teacher else [cache.first, *cache.teachers],
        "software": cache.manifest.get("software", {}),
        "bytes": sum(cache.bytes.values()),
    }
    return cache_identity(cache, parts) | told


def finish_folder(
    folder: Path,
    student: Any,
    caches: Sequence[Cache],
    log: list[Json],
    title: str,
    dev: Json | None,
) -> None:
    """Write the student and its tokenizer as any good model folder has them, log and curves.

    Students that were trained together have folders of their own within it, and so have heads:
    `caches` has that of each.
    """
    for (home, one), cache in zip(homes(folder, student), cycle(caches), strict=False):
        one.save_pretrained(home)
        save_tokenizer(cache, home)
        if cache.kept is not None:
            cache.kept.save(home)
        pad_id = one.config.get_text_config().pad_token_id
        serve_with(home, length=_longest(one, cache), pad_id=pad_id)
        if home != folder:
            for note in (RECIPE, CACHE):
                shutil.copy(folder / note, home)
        if len(caches) > 1:
            write_json(home / CACHE, read_json(folder / CACHE) | _cache_record(cache, None))
    tell_folder(folder, log, title, dev)


def tell_folder(folder: Path, log: list[Json], title: str, dev: Json | None) -> None:
    """Write log and curves."""
    write_json(folder / LOG, log)
    draw_curves(log, folder / CURVES, title=title, dev=dev)


def _longest(student: Any, cache: Cache) -> int:
    """Tokens of the longest text the student takes and has been trained on."""
    planned, limit = cache.plan.config.max_length, most_tokens(student)
    return planned if limit is None else min(planned, limit)


def write_json(path: Path, value: Any) -> None:
    """Write JSON values; numbers JSON does not have become null."""
    path.write_text(json.dumps(_plain(value), indent=2) + "\n", "utf-8")


def read_json(path: Path) -> Any:
    """JSON values of a file of a run's; ConfigError if it is damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {error}; train into another folder") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
