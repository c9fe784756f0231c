"""An example of every codec of every signal, from the table alone: what is listed is tested."""

from __future__ import annotations

from typing import Any, NamedTuple

from kdcache.records import required, settings_of
from kdcache.signals import SIGNALS

NEEDED = {"layers": "1-4"}
"""Options without a default, for teachers of four layers."""


class Example(NamedTuple):
    """A signal as `--signal` takes it, a name for it, its kind, and the options that it has."""

    text: str
    name: str
    kind: str
    options: frozenset[str]

    def called(self, **more: object) -> str:
        """The text with its name and some options set, those that it has."""
        given = [f"{key}={value}" for key, value in more.items() if key in self.options]
        return f"{self.name}={','.join([self.text, *given]).replace(':,', ':')}"


def example_of(kind: str, codec: str) -> Example:
    """The example of an entry of SIGNALS, named after its codec."""
    made: type[Any] = SIGNALS[kind][codec]
    needed = required(made)
    unknown = [option for option in needed if option not in NEEDED]
    assert not unknown, f"{kind}:{codec}: give {unknown} a default, or an example in NEEDED"
    head = [f"{kind}:{codec}"] if len(SIGNALS[kind]) > 1 else [f"{kind}:"]
    text = ",".join([*head, *(f"{option}={NEEDED[option]}" for option in needed)])
    options = frozenset(settings_of(made))
    return Example(text=text.replace(":,", ":"), name=codec, kind=kind, options=options)


EXAMPLES = [example_of(kind, codec) for kind, codecs in SIGNALS.items() for codec in codecs]
