"""Signals and fidelity of a cache in words, as reports and pages have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kdcache.manifest import Json
from kdcache.rendering import show

FIDELITY = {
    "rows": ("rows sampled", ""),
    "kl_mean": ("KL(teacher ‖ decoded), mean", "nats"),
    "kl_max": ("KL(teacher ‖ decoded), max", "nats"),
    "full_kl_mean": ("KL over the whole vocabulary, mean", "nats"),
    "full_kl_max": ("KL over the whole vocabulary, max", "nats"),
    "top1_agreement": ("top-1 agreement", "%"),
    "kept_mass": ("probability kept", "%"),
    "value_error_max": ("largest error of a value", ""),
    "relative_error": ("relative error", "%"),
}


def signal_text(config: Json) -> str:
    """A signal as its manifest has it."""
    values = {k: v for k, v in config.items() if v is not None and k != "codec"}
    if values.get("kind") == config["codec"]:
        del values["kind"]
    inner = [
        f"{k}={'-'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in values.items()
    ]
    return ", ".join([config["codec"], *inner])


def fidelity_rows(fidelity: Mapping[str, Json]) -> Iterator[tuple[str, str, str, str]]:
    """Signal, measure, value and unit of every figure of a cache's fidelity."""
    for signal, figures in fidelity.items():
        for name, value in figures.items():
            label, unit = FIDELITY.get(name, (name.replace("_", " "), ""))
            inner = value if isinstance(value, Mapping) else {"": value}
            for key, figure in inner.items():
                number = figure * 100 if unit == "%" else figure
                yield signal, f"{label}, {key}" if key else label, show(number), unit
