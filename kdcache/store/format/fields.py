"""The tables of a manifest and the values that each of their fields may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from kdcache.errors import DamageError
from kdcache.labels import LABEL_KINDS
from kdcache.manifest import canonical
from kdcache.store.io.object_path import Root
from kdcache.tasks import TASKS

ROWS = 2**31  # of a part, in any space; a shard of one byte a row would be 2 GiB
WIDTH = 2**24  # values of a row
COUNT = 2**62


class Kind(NamedTuple):
    """A set of JSON values and its name."""

    what: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    """Whole numbers from `low` to `high`."""
    return Kind(
        f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high
    )


def choice(options: Collection[str]) -> Kind:
    """One of some texts, or of the names of a table, whatever is in it by then."""
    return Kind(f"one of {', '.join(options)}", lambda v: isinstance(v, str) and v in options)


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _settings(value: Any, depth: int = 12) -> bool:
    """Whether this is a table of values, lists and tables, within one another up to `depth`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(
        _settings(v, depth - 1) if isinstance(v, (dict, list)) else True for v in inner
    )


def _fits(value: Any) -> bool:
    return isinstance(value, dict) and len(canonical(value)) <= 2**22


def _hex(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


TEXT = Kind("a text", lambda v: isinstance(v, str))
TEXTS = Kind("a list of texts", _names)
TEXTS_OR_NONE = Kind("a list of texts or null", lambda v: v is None or _names(v))
TEXT_OR_TEXTS = Kind(
    "a text, texts or null", lambda v: v is None or isinstance(v, str) or _names(v)
)
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
SHARE = Kind("a number from 0 to 1", lambda v: type(v) in (int, float) and 0 <= v <= 1)
TABLE = Kind("a table", lambda v: isinstance(v, dict))

Schema = Mapping[str, "Kind | Schema"]

PLAN: Schema = {
    "sha256": TEXT,
    "parts": whole(1, ROWS),
    "rows": TABLE,
    "documents": whole(1, COUNT),
    "tokens": whole(1, COUNT),
    "masked": whole(0, COUNT),
    "config": {
        "task": choice(TASKS),
        "problem": choice(LABEL_KINDS),
        "tokenizer": {
            "name": TEXT,
            "sha256": TEXT,
            "vocab_size": whole(1, 2**32),
            "pad_id": whole(0, 2**32),
            "type_ids": FLAG,
        },
        "corpus": {
            "text_columns": TEXTS,
            "label_column": TEXT_OR_TEXTS,
            "documents": whole(1, COUNT),
            "truncated": whole(0, COUNT),
            "sha256": TEXT,
        },
        "max_length": whole(1, ROWS),
        "seed": whole(0, 2**128),
        "part_tokens": whole(1, ROWS),
        "mask_probability": SHARE,
        "views": whole(1, 2**15),
    },
}
CACHE: Schema = {
    "teacher": {
        "name": TEXT,
        "source": TEXT,
        "class": TEXT,
        "weights_sha256": TEXT,
        "parameters": whole(0, COUNT),
        "dtype": TEXT,
        "attention": TEXT,
        "classes": TEXTS_OR_NONE,
    },
    "shape": {
        "outputs": whole(1, WIDTH),
        "hidden": whole(1, WIDTH),
        "layers": whole(1, 2**16),
    },
    "signals": TABLE,
    "software": TABLE,
}
ATTENTION: Schema = {name: whole(1, WIDTH) for name in ("heads", "key_heads", "head_width")}
"""Of a teacher's shape, where a signal stores something of its attention."""
FUNCTION: Schema = {
    "config": Kind("a table of up to 4 MiB", lambda v: _settings(v) and _fits(v)),
    "implied": TEXTS,
    "code_sha256": Kind("a SHA-256 or null", lambda v: v is None or _hex(v)),
}
"""Of a teacher, from the third format on."""


def conform(value: Any, schema: Schema, where: Root, name: str = "") -> None:
    """DamageError, naming the field, unless `value` is a table of what `schema` asks for."""
    if not isinstance(value, dict):
        raise damaged(where, name or "the record", value, TABLE.what)
    for key, kind in schema.items():
        field = f"{name}.{key}" if name else key
        if key not in value:
            raise DamageError(f"{where} is damaged: it has no {field}")
        if not isinstance(kind, Kind):
            conform(value[key], kind, where, field)
        elif not kind.fits(value[key]):
            raise damaged(where, field, value[key], kind.what)


def damaged(where: Root, field: str, value: Any, what: str) -> DamageError:
    """The error of a field that is not what it should be."""
    shown = repr(value) if type(value) is not int or abs(value) < 2**64 else "a huge number"
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return DamageError(f"{where} is damaged: {field} is {shown}; expected {what}")
