"""Which teacher and which plan is the same: what of a manifest's tables counts, and what does not.

Where a model lies does not change what it says, and neither does a value that a version of
transformers does not know yet and a later one fills in itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kdcache.manifest import NAMED, Json, differences
from kdcache.progress import Progress

ELSEWHERE = ("name", "source", "task")
"""Of a teacher: where it lies, and what it was run for where that is not the plan's task."""
FUNCTION = ("config", "implied", "code_sha256")
"""Of a teacher: what beside its weights makes it the function it is; none before format 3."""

Leaf = tuple[str, ...]


def leaves(table: Mapping[str, Any], above: Leaf = ()) -> Iterator[tuple[Leaf, Any]]:
    """The values of tables within tables, each with the keys that lead to it."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def dotted(leaf: Leaf) -> str:
    """The name of a value in tables within tables."""
    return ".".join(leaf)


def has_configuration(teacher: Json) -> bool:
    """Whether a teacher's table says more of it than its weights: those before format 3 do not."""
    return "config" in teacher


def say_unvouched(progress: Progress, teachers: Iterable[tuple[object, Json]]) -> None:
    """Say, in one line, in which places teachers' tables are without a configuration, if any."""
    bare = dict.fromkeys(str(place) for place, table in teachers if not has_configuration(table))
    if bare:
        progress.say(
            f"warning: {', '.join(bare)}: made before format {NAMED}, without the configuration of "
            "the teacher; whatever has the same weights passes for the teacher of then"
        )


def teacher_differences(stored: Json, found: Json) -> list[tuple[str, Any, Any]]:
    """The fields in which two teachers' tables differ: (dotted name, stored value, found value)."""
    return differences(*comparable_teachers(stored, found))


def comparable_teachers(stored: Json, found: Json) -> tuple[Json, Json]:
    """Two teachers' tables without what tells no teacher from another.

    Of their configurations a value is left out that only one has, where it is what the
    configuration's class gives by itself; where one has no configuration, so is the other's.
    """
    left_out = ELSEWHERE if _both(stored, found) else (*ELSEWHERE, *FUNCTION)
    tables = [{k: v for k, v in t.items() if k not in left_out} for t in (stored, found)]
    if _both(stored, found):
        for table, own, other in ((tables[0], stored, found), (tables[1], found, stored)):
            table["config"] = _without_implied(own, _settings(other).keys())
            del table["implied"]
    return tables[0], tables[1]


def _both(stored: Json, found: Json) -> bool:
    return has_configuration(stored) and has_configuration(found)


def _without_implied(teacher: Json, known: Any) -> Json:
    """Values of a configuration by dotted name, without those implied and not `known` elsewhere."""
    implied = set(teacher["implied"])
    return {
        name: value
        for name, value in _settings(teacher).items()
        if name in known or name not in implied
    }


def _settings(teacher: Json) -> Json:
    return {dotted(leaf): value for leaf, value in leaves(_modern(teacher["config"]))}


def _modern(config: Json) -> Json:
    """A configuration, and those within it, with rotary settings where transformers 5 has them."""
    found = {k: _modern(v) if isinstance(v, dict) else v for k, v in config.items()}
    scaling = found.get("rope_scaling") or {}
    old = "rope_theta" in found and "rope_parameters" not in found and "model_type" in found
    if old and isinstance(scaling, dict):
        kind = {"rope_type": "default", "rope_theta": found.pop("rope_theta")}
        found.pop("rope_scaling", None)
        found["rope_parameters"] = {**kind, **scaling}
    return found


def nameless(plan: Json) -> Json:
    """A plan's table without what its tokenizer is called."""
    config = plan["config"]
    tokenizer = {key: value for key, value in config["tokenizer"].items() if key != "name"}
    return {**plan, "config": {**config, "tokenizer": tokenizer}}
