"""What is known of a model before it is loaded, by the names of its family and class."""

from __future__ import annotations

import inspect

import transformers

from kdcache.tasks import Space, Task


def decodes(model_type: str) -> bool:
    """Whether a family only reads forwards: its classifiers read a document at its last token."""
    if model_type not in transformers.CONFIG_MAPPING:
        return False
    config = transformers.CONFIG_MAPPING[model_type]
    causal = config in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return causal and config not in transformers.MODEL_FOR_MASKED_LM_MAPPING


ALL: tuple[Space, ...] = ("document", "token", "selected")
SWAYED: dict[str, tuple[Space, ...]] = {
    "convbert": ALL,  # its convolutions reach over the mask
    "funnel": ("selected",),  # pools tokens two by two
    "xlnet": ("document",),  # reads the last position, a pad or not
    "yoso": ALL,  # hashes all of a batch
}
"""Families whose models padding changes though they take a mask, and of which rows it does."""


def sways(name: str, model_type: str, task: Task) -> bool:
    """Whether padding changes what models of a class and family say.

    Of a class that transformers does not have nothing is known: it is taken to be as most are.
    """
    kind = getattr(transformers, name, None)
    masked = kind is None or "attention_mask" in inspect.signature(kind.forward).parameters
    return not masked or task.rows in SWAYED.get(model_type, ())
