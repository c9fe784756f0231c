"""Layer maps: which hidden layer of the student learns from which hidden layer of the teacher.

Hidden layers are numbered as everywhere: 0 is the embedding output, i the output of block i. A map
depends on the two depths alone, so it can be checked before a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from kdcache.errors import ConfigError, one_of

Pairs = tuple[tuple[int, int], ...]
LayerMap = str | Sequence[Sequence[int]]


def layer_pairs(layer_map: LayerMap, student: int, teacher: int) -> Pairs:
    """Pairs (student layer, teacher layer) of a map between depths `student` and `teacher`.

    `layer_map` is a name of LAYER_MAPS, a list of pairs, or a text such as "1:2,2:4".

    Raises ConfigError if the map is empty, does not fit the depths or names a layer that is not
    there.
    """
    if student < 0:
        raise ConfigError(
            f"layer map {layer_map!r} pairs layers of hidden states, and the student gives none: "
            "declare them in its attribute `taps`, or choose a recipe without a loss on them"
        )
    if isinstance(layer_map, str) and ":" not in layer_map:
        make = LAYER_MAPS[one_of("layer map", layer_map, LAYER_MAPS)]
        pairs = make(student, teacher)
    else:
        pairs = explicit_pairs(layer_map)
    _check(layer_map, pairs, student, teacher)
    return pairs


def explicit_pairs(layer_map: LayerMap) -> Pairs:
    """Read "1:2,2:4" or [[1, 2], [2, 4]]; ConfigError for anything else."""
    if isinstance(layer_map, str):
        found = [re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", item) for item in layer_map.split(",")]
        if all(found):
            return tuple((int(m[1]), int(m[2])) for m in found if m)
    elif all(_is_pair(item) for item in layer_map):
        return tuple((int(item[0]), int(item[1])) for item in layer_map)
    raise ConfigError(
        f"a layer map is one of {', '.join(LAYER_MAPS)}, or pairs of a student and a teacher "
        f"layer such as '1:2,2:4'; got {layer_map!r}"
    )


def _is_pair(item: object) -> bool:
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
        return False
    return all(isinstance(i, int) and not isinstance(i, bool) for i in item)


def _check(layer_map: LayerMap, pairs: Pairs, student: int, teacher: int) -> None:
    if not pairs:
        raise ConfigError(
            f"layer map {layer_map!r} is empty for a student of {student} layer"
            f"{'s' if student != 1 else ''}: it leaves out the last one; give pairs such as "
            f"'{student}:{teacher}'"
        )
    for which, depth, layers in (
        ("student", student, [s for s, _ in pairs]),
        ("teacher", teacher, [t for _, t in pairs]),
    ):
        outside = [layer for layer in layers if not 0 <= layer <= depth]
        if outside:
            raise ConfigError(
                f"layer map {layer_map!r} needs {which} layer {outside[0]}; the {which} has layers "
                f"0 (embedding output) to {depth}"
            )


def skip(student: int, teacher: int) -> Pairs:
    """Every (teacher / student)-th layer, without the last: PKD-Skip (arXiv:1908.09355).

    The last layers are left out because the logits tie them already.
    """
    return _spread("skip", range(1, student), student, teacher)


def last(student: int, teacher: int) -> Pairs:
    """The topmost layers, without the last: PKD-Last (arXiv:1908.09355)."""
    return tuple((m, teacher - student + m) for m in range(1, student))


def first(student: int, teacher: int) -> Pairs:
    """The lowest layers, without the student's last."""
    return tuple((m, m) for m in range(1, student))


def uniform(student: int, teacher: int) -> Pairs:
    """Every (teacher / student)-th layer from the embedding output to the last: TinyBERT
    (arXiv:1909.10351).
    """
    return _spread("uniform", range(student + 1), student, teacher)


def middle(student: int, teacher: int) -> Pairs:
    """The middle layer of both, and no other: the hint of FitNets (arXiv:1412.6550)."""
    return ((max(1, student // 2), max(1, teacher // 2)),)


def top(student: int, teacher: int) -> Pairs:
    """The last layer of both, and no other."""
    return ((student, teacher),)


def blocks(student: int, teacher: int) -> Pairs:
    """As `uniform`, without the embedding output: for what only blocks have, such as attention."""
    return _spread("blocks", range(1, student + 1), student, teacher)


def _spread(name: str, layers: range, student: int, teacher: int) -> Pairs:
    """Layers of the student with every (teacher / student)-th of the teacher."""
    if student < 1:
        raise ConfigError(
            f"layer map {name!r} spreads the student's layers over the teacher's, and the student "
            f"has none above its embeddings: give pairs such as '0:{teacher}'"
        )
    pairs = tuple((m, m and max(1, round(m * teacher / student))) for m in layers)
    if teacher % student:
        near = ",".join(f"{ours}:{theirs}" for ours, theirs in pairs)
        raise ConfigError(
            f"layer map {name!r} needs the teacher's layers to be a multiple of the student's; "
            f"they have {teacher} and {student}: give pairs such as '{near}'"
        )
    return pairs


LAYER_MAPS: dict[str, Callable[[int, int], Pairs]] = {
    "skip": skip,
    "last": last,
    "first": first,
    "uniform": uniform,
    "middle": middle,
    "top": top,
    "blocks": blocks,
}
"""Every named map: (student layers, teacher layers) -> pairs."""
