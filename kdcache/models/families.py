"""What is known of a model before it is loaded, by the names of its family and class."""

from __future__ import annotations

import inspect

import transformers


def decodes(model_type: str) -> bool:
    """Whether a family only reads forwards: its classifiers read a document at its last token."""
    if model_type not in transformers.CONFIG_MAPPING:
        return False
    config = transformers.CONFIG_MAPPING[model_type]
    causal = config in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return causal and config not in transformers.MODEL_FOR_MASKED_LM_MAPPING


def takes_mask(name: str) -> bool:
    """Whether models of a class of transformers are told which tokens are padding.

    Of a class that is not there nothing is known, and it is taken to be as most are.
    """
    kind = getattr(transformers, name, None)
    return kind is None or "attention_mask" in inspect.signature(kind.forward).parameters
