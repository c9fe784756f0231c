"""Signals that are of the label of each document, which documents without one have not."""

from __future__ import annotations

from collections.abc import Mapping

from kdcache.errors import ConfigError
from kdcache.plans import Plan
from kdcache.signals import AsksLabels, ModelSizes, Signal


def labels_asked(signals: Mapping[str, Signal], shape: ModelSizes) -> list[str]:
    """Names of the signals that are of the label of each document."""
    return [
        name
        for name, signal in signals.items()
        if isinstance(signal, AsksLabels) and signal.asks_labels(shape)
    ]


def require_labels(plan: Plan, signals: Mapping[str, Signal], shape: ModelSizes) -> None:
    """Raise ConfigError for documents without a label that a signal is of."""
    lacking = plan.documents - plan.labelled
    for name in labels_asked(signals, shape) if lacking else ():
        raise ConfigError(
            f"{name} is of the label of each document, with views=one of {shape.outputs} classes, "
            f"and {lacking:,} of {plan.documents:,} have none: take views=all, or leave those "
            "documents out"
        )
