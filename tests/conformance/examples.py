"""An example of every codec of every signal, from the table alone: what is listed is tested."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from kdcache.signals import SIGNALS

NEEDED = {"layers": "0-4"}
"""Options without a default, for teachers of four layers."""


class Example(NamedTuple):
    """A signal as `--signal` takes it, its name, and the options that it has."""

    text: str
    name: str
    options: frozenset[str]

    def with_options(self, **more: object) -> str:
        """The text with some options set, those that it has."""
        given = [f"{key}={value}" for key, value in more.items() if key in self.options]
        colon = "" if ":" in self.text else ":"
        return ",".join([self.text + colon, *given]).replace(":,", ":")


def _example(name: str, codec: str, kind: type[Any], several: bool) -> Example:
    needed = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]
    unknown = [option for option in needed if option not in NEEDED]
    assert not unknown, f"{name}:{codec}: give {unknown} a default, or an example in NEEDED"
    head = [f"{name}:{codec}"] if several else [f"{name}:"]
    text = ",".join([*head, *(f"{option}={NEEDED[option]}" for option in needed)])
    options = frozenset(f.name for f in fields(kind) if f.compare)
    return Example(text=text.replace(":,", ":"), name=name, options=options)


EXAMPLES = [
    _example(name, codec, kind, len(codecs) > 1)
    for name, codecs in SIGNALS.items()
    for codec, kind in codecs.items()
]
