"""What a cache says of itself in a prompt and in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdcache.manifest import Json
from kdcache.rendering import both
from kdcache.rendering.figures import show_all
from kdcache.rendering.parts import fields
from kdcache.signals import FEATURES, to_record
from kdcache.signals.base import settings_text

if TYPE_CHECKING:
    from kdcache.store.cache import Cache


def in_line(cache: Cache) -> str:
    """A cache in a line, for `repr`."""
    done, parts = len(cache.committed), cache.plan.parts
    state = "complete" if cache.complete else f"{done}/{parts} parts"
    signals = ", ".join(f"{name} {settings}" for name, settings in _signals(cache).items())
    return (
        f"<Cache {cache.path}: {cache.plan.documents:,} documents, {cache.plan.tokens:,} tokens, "
        f"teacher {cache.manifest['teacher']['name']}, signals: {signals}; {state}, "
        f"{sum(cache.bytes.values()):,} bytes>"
    )


def as_html(cache: Cache) -> str:
    """A cache as a table, for a notebook."""
    plan = cache.plan
    rows = {
        "cache": f"`{cache.path}`",
        "task": plan.config.task,
        "documents": f"{plan.documents:,}, {plan.tokens:,} tokens",
        "teacher": str(cache.manifest["teacher"]["name"]),
        **{f"signal {name}": settings for name, settings in _signals(cache).items()},
        **{f"fidelity of {name}": show_all(told) for name, told in cache.fidelity.items()},
        "parts": f"{len(cache.committed)} of {plan.parts}",
        "size": both(sum(cache.bytes.values())),
    }
    return fields(rows.items()).html()


def _signals(cache: Cache) -> dict[str, str]:
    """The settings of each signal, by name."""
    return {name: _short(to_record(name, signal)) for name, signal in cache.signals.items()}


def _short(config: Json) -> str:
    values = {k: v for k, v in config.items() if k not in ("kind", "codec")}
    head = config["codec"] if config["codec"] not in FEATURES else config.get("kind", "")
    return f"{head}({settings_text(values, ', ')})"
