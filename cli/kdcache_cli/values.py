"""What the texts of options become: names, layers, and what is given for each head."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any

from kdcache.errors import ConfigError, one_of


def known(what: str, names: Iterable[str]) -> Callable[[str | None], str | None]:
    """A check that a value, where given, is one of `names`, made before anything is loaded."""

    def check(value: str | None) -> str | None:
        return value if value is None else one_of(what, value, names)

    return check


def layers(text: str | None) -> tuple[int, ...] | None:
    """Layers written as 2-4-6; ConfigError if they are not."""
    if text is None:
        return None
    try:
        return tuple(int(layer) for layer in text.split("-"))
    except ValueError as error:
        raise ConfigError(f"--init-from-teacher takes layers as in 2-4-6; got {text!r}") from error


def names(values: list[str] | None) -> list[str] | None:
    """Names written as A,B, the option given once or more often."""
    found = [name.strip() for value in values or () for name in value.split(",")]
    return [name for name in found if name] or None


def one_or_several(values: list[str] | None) -> str | list[str] | None:
    """A name that is given once by itself, others as a list."""
    return values[0] if values and len(values) == 1 else values or None


def named(values: list[str] | None, what: str) -> Any:
    """NAME=VALUE, given once or more often, as a mapping; values without names as a list.

    A path that is there is no name. Raises ConfigError where some have names, or two have one.
    """
    pairs = [_name_and_value(value, what) for value in values or ()]
    heads = [name for name, _ in pairs if name]
    if not heads:
        return [value for _, value in pairs]
    if len(heads) < len(pairs):
        raise ConfigError(
            f"{what} is given a name each, as in one=A two=B, or none; got {' '.join(values or ())}"
        )
    if twice := [name for name in heads if heads.count(name) > 1]:
        raise ConfigError(f"{what} names {twice[0]!r} twice: give each its own, as in one=A two=B")
    return dict(pairs)


def _name_and_value(text: str, what: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or os.path.exists(text):
        return "", text
    if not (name and value):
        where = "behind" if name else "before"
        raise ConfigError(f"nothing stands {where} the = of {what} {text}: write it as in one=A")
    return (name, value) if re.fullmatch(r"[\w-]+", name) else ("", text)


def one_named(values: list[str] | None, flag: str) -> Any:
    """The same for an option that names one thing, or one for each head of a student."""
    found = named(values, flag)
    if isinstance(found, list) and len(found) > 1:
        raise ConfigError(f"{flag} is given once, or once for each head as NAME=...; got {found}")
    return found[0] if isinstance(found, list) and found else found or None


def of_heads(values: list[str] | None, caches: Any, flag: str) -> dict[str, Any]:
    """What an option says of each named cache, by its name; of caches without names, under ""."""
    found = one_named(values, flag)
    names = [*caches] if isinstance(caches, dict) else []
    if not isinstance(found, dict):
        return dict.fromkeys(names or [""], found)
    if not names:
        raise ConfigError(
            f"{flag} {next(iter(found))}=... is for a cache of that name, and none has one: leave "
            f"the name out, or give each cache one ({next(iter(found))}=CACHE)"
        )
    for name in found:
        one_of(f"name of a cache in {flag}", name, names)
    return found
