"""What the settings of a student may be."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kdcache.errors import ConfigError

NONE: Mapping[str, int] = MappingProxyType({})


def require_sizes(
    student: str, *, least: Mapping[str, int] = NONE, dropout: Any, **sizes: Any
) -> dict[str, Any]:
    """All settings of a student; ConfigError for a size below its `least`, which is 1 if not said.

    A dropout is a share of what is dropped, 0 or more and below 1.
    """
    for name, size in sizes.items():
        if type(size) is not int or size < least.get(name, 1):
            raise ConfigError(
                f"{student}: {name} is a whole number, {least.get(name, 1)} or more; got {size!r}"
            )
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ConfigError(f"{student}: dropout is 0 or more and below 1; got {dropout!r}")
    return {**sizes, "dropout": dropout}
