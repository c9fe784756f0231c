"""What the students of a sweep differ in: axes over what `train` takes and fields of its recipe."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, did_you_mean, near, require_path
from kdcache.manifest import Json, digest
from kdcache.records import make, read_toml
from kdcache.sweeping.record import Student
from kdcache.training.overrides import value_of_text

STUDENTS = "students"
SEED, SEEDS = "seed", "seeds"
SIZES = ("layers", "width")
SOURCES = ("student", "init_from_teacher", "config")
FIRST = ("recipe", *SOURCES, *SIZES)
ARGUMENTS = (*FIRST, "vocabulary", "epochs", "lr", "batch_size", SEED)
"""Axes that are no field of a recipe: arguments of `train`, and sizes that become such."""

WHOLE = ("balance", "inputs", "trainable")  # fields of a recipe by themselves
TAKEN = ("dev.file", "dev.files", "dev.split")
WIDE = 10  # times: a range so wide is drawn by its logarithm
LONGEST = 80  # characters of a folder's name
_RANGE = re.compile(r"\s*([-+.\deE]+?)\s*\.\.\s*([-+.\deE]+)\s*")


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers that a search draws from, both ends among them; whole ones if both ends are.

    Attributes:
        log: whether their logarithm is drawn evenly; None: if the one end is 10 times the other.
    """

    low: float
    high: float
    log: bool | None = None

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(f"a range goes up, as in 1e-5..1e-3; got {self.low}..{self.high}")
        if self.log and self.low <= 0:
            raise ConfigError(f"a range with log = true begins above 0; got {self.low}")

    @property
    def whole(self) -> bool:
        """Whether whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def by_log(self) -> bool:
        """Whether the logarithm is drawn evenly."""
        wide = not self.whole and self.low > 0 and self.high >= WIDE * self.low
        return wide if self.log is None else self.log


Values = tuple[Any, ...] | Range


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The axes of a sweep.

    Attributes:
        axes: values of each, or a range, by its name: one of ARGUMENTS, or a field of the recipe.
        seeds: the students of each setting; empty: one, with the seed of its recipe.
    """

    axes: Mapping[str, Values]
    seeds: tuple[int, ...] = ()
    ranges: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        ranges = tuple(name for name, values in self.axes.items() if isinstance(values, Range))
        object.__setattr__(self, "ranges", ranges)
        _require_one_source(self.axes)

    def settings(self) -> list[Json]:
        """Every setting, without its seed; the first axis turns slowest.

        Raises ConfigError for a range, which has no end of values.
        """
        if self.ranges:
            raise ConfigError(
                f"{self.ranges[0]} is a range, of which a search draws: add --search N, or list "
                "its values"
            )
        lists: list[Any] = list(self.axes.values())
        return [dict(zip(self.axes, values, strict=True)) for values in product(*lists)]

    def students(self, settings: Json) -> list[Student]:
        """The students of a setting: one of each seed."""
        return [
            student_of({**settings, **({} if seed is None else {SEED: seed})})
            for seed in self.seeds or (None,)
        ]

    @property
    def differing(self) -> tuple[str, ...]:
        """The axes in which students differ, the seed last."""
        several = [n for n, v in self.axes.items() if isinstance(v, Range) or len(v) > 1]
        return (*several, *([SEED] if len(self.seeds) > 1 else []))


def read_grid(
    grid: str | Path | Mapping[str, Any] | None, sets: Sequence[str], seeds: int | None = None
) -> Grid:
    """The grid of a TOML file, or of what it would hold, of texts such as "layers=2,3", which take
    the place of an axis of the file, and of a number of seeds, 0 and on.

    In the file a list is an axis, a value by itself is the same for all, and a table goes by dotted
    names, but for one with "low" and "high", which is a range. Of a recipe's field whose value is a
    list, the axis is a list of lists.

    Raises ConfigError for an axis that there is none of, or that is empty.
    """
    found = dict(_flat(_table(grid), ""))
    for text in [sets] if isinstance(sets, str) else sets:
        name, values = _read(text)
        found[name] = values
    counted = found.pop(SEEDS, None)
    own = _seeds(seeds if seeds is not None else counted)
    if SEED in found:
        if own:
            raise ConfigError(
                f"seeds are counted (--seeds) or listed ({SEED}=...): give one of both"
            )
        own = found.pop(SEED)
    for name, values in found.items():
        _check(name, values)
    if isinstance(own, Range) or not all(type(seed) is int for seed in own):
        raise ConfigError(f"{SEED} is a list of whole numbers; got {own}")
    if "recipe" not in found:
        found["recipe"] = ("kd",)
    order = sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return Grid(axes={name: found[name] for name in order}, seeds=tuple(own))


def _table(grid: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if grid is None or isinstance(grid, Mapping):
        return grid or {}
    require_path("a grid", grid, "file")
    return read_toml(Path(grid), f"grid {grid}")


def _seeds(count: Any) -> Any:
    if count is None:
        return ()
    count = count[0] if isinstance(count, tuple) and len(count) == 1 else count
    if type(count) is not int or count < 1:
        raise ConfigError(f"--seeds is how many students each setting has, 1 or more; got {count}")
    return tuple(range(count))


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Values]]:
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Range):
            yield name, value
        elif isinstance(value, Mapping) and {"low", "high"} <= value.keys():
            yield name, make(Range, value, name)
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, _distinct(value if isinstance(value, list | tuple) else [value])


def _read(text: str) -> tuple[str, Values]:
    """An axis of the command line: its values as TOML, and as text where they are not TOML."""
    name, equals, values = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"an axis is KEY=A,B,C, as in layers=2,3; got {text[:60]!r}")
    if ends := _RANGE.fullmatch(values):
        low, high = (value_of_text(end) for end in ends.groups())
        return name.strip(), make(Range, {"low": low, "high": high}, name.strip())
    return name.strip(), _distinct([value_of_text(part.strip()) for part in _parts(values)])


def _parts(text: str) -> Iterator[str]:
    """A text cut at its commas, but for those within brackets and quotes."""
    depth, quote, begin = 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[begin:place]
            begin = place + 1
    yield text[begin:]


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple({in_toml(value): value for value in values}.values())


def _check(name: str, values: Values) -> None:
    if name not in (*ARGUMENTS, *WHOLE) and "." not in name:
        meant = did_you_mean(near(name, [*ARGUMENTS, SEEDS]))
        raise ConfigError(
            f"unknown axis {name!r}{meant} (an axis is one of {', '.join(ARGUMENTS)}, or a field "
            "of the recipe, such as losses.kl.temperature)"
        )
    if name in TAKEN:
        raise ConfigError(f"{name} is the same for all students: name it with --dev or --dev-split")
    if isinstance(values, tuple) and (not values or "" in values):
        raise ConfigError(f"axis {name} lists an empty value; got {list(values)}")


def _require_one_source(axes: Mapping[str, Values]) -> None:
    given = [name for name in (*SOURCES, *SIZES) if name in axes]
    sized = set(given) <= set(SIZES)
    in_recipe = [name for name in axes if name.startswith("student.")]
    if len(given) > 1 and not sized:
        raise ConfigError(
            f"{given[0]} and {given[1]} both say where students come from: give one of them"
        )
    if given and any(name.removeprefix("student.") in SOURCES for name in in_recipe):
        raise ConfigError(f"{given[0]} and {in_recipe[0]} both say where students come from")


def student_of(settings: Json) -> Student:
    """The student of a setting, and the folder it goes to: its name follows from the setting."""
    name = _name(settings)
    return Student(name=name, folder=f"{STUDENTS}/{name}", settings=settings)


def _name(settings: Json) -> str:
    """The same whatever order the settings were given in."""
    known = {key: place for place, key in enumerate((*FIRST, "", SEED))}
    keys = sorted(settings, key=lambda key: (known.get(key, known[""]), key))
    lasts = [key.rpartition(".")[2] for key in keys]
    parts, whole = [], True
    for key, last in zip(keys, lasts, strict=True):
        text = plain(settings[key])
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")
        whole &= slug == text
        short = last if lasts.count(last) == 1 else key
        parts.append(slug if key == "recipe" else f"{short}-{slug}")
    name = "_".join(parts)
    if whole and len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 7]}_{digest(settings)[:6]}"


def plain(value: Any) -> str:
    """A value as people write it: 2-4-6 for a list of layers."""
    if isinstance(value, list | tuple):
        return "-".join(map(plain, value))
    return value if isinstance(value, str) else in_toml(value)


def called(settings: Json, axes: Sequence[str]) -> str:
    """What sets a setting apart, in words; the recipe where nothing does."""
    words = [
        plain(settings[name]) if name == "recipe" else f"{name}={plain(settings[name])}"
        for name in axes
        if name in settings and name != SEED
    ]
    return ", ".join(words) or plain(settings["recipe"])


def in_toml(value: Any) -> str:
    """A value as TOML has it in a line."""
    if isinstance(value, Mapping):
        inner = (f"{json.dumps(key)} = {in_toml(one)}" for key, one in value.items())
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
