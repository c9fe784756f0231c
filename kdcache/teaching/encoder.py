"""An encoder with a new head, for the classes of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from kdcache.errors import ModelError
from kdcache.evaluation.scoring import require_fit
from kdcache.labels import LabelKind
from kdcache.models import Tokenizer, load_config
from kdcache.models.auto import auto_class, silent_transformers, unreadable
from kdcache.models.padding import pad_of
from kdcache.models.teacher import tensors_sha256
from kdcache.plans import Plan
from kdcache.tasks.text_classification import TEXT_CLASSIFICATION

auto_class_NAME = "AutoModelForSequenceClassification"


class Encoder(NamedTuple):
    """A model with a new head, and the digest of the weights that were there before."""

    model: Any
    weights_sha256: str


def require_encoder(source: str | Path) -> Any:
    """The configuration of a model that can be a classifier; ModelError for any other."""
    config = load_config(source)
    known = type(config) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not known and auto_class_NAME not in (getattr(config, "auto_map", None) or {}):
        raise ModelError(
            f"{source} is a {config.model_type}, of which transformers has no classifier "
            f"({auto_class_NAME}): choose another encoder"
        )
    return config


def load_encoder(
    source: str | Path, config: Any, names: list[str], plans: list[Plan], tokenizer: Tokenizer
) -> Encoder:
    """Load an encoder as a classifier of `names` (none: of one value).

    What it lacks of a head is drawn from torch's global generator.

    Raises ModelError if it cannot be loaded, lacks weights of the encoder itself, or does not take
    the documents of `plans`.
    """
    _set_labels(config, names, plans[0].label_kind)
    options = {
        "config": config,
        "dtype": torch.float32,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # of heads; `_require_whole` says of others
    }
    try:
        with silent_transformers():  # of the weights of a head, which are meant to be new
            model, info = auto_class(TEXT_CLASSIFICATION).from_pretrained(str(source), **options)
    except Exception as error:  # weights fail to load in as many ways as there are file formats
        raise ModelError(unreadable("encoder", source, error)) from error
    new = {*info["missing_keys"], *(name for name, _, _ in info["mismatched_keys"])}
    _require_whole(model, new, source)
    state = {name: t for name, t in model.state_dict().items() if name not in new}
    _name_pad(model.config, tokenizer)
    for plan in plans:
        require_fit(model, plan, "the encoder")
    return Encoder(model, tensors_sha256(state))


def _set_labels(config: Any, names: list[str], kind: LabelKind) -> None:
    config.num_labels = max(1, len(names))
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = kind.problem_type


def _require_whole(model: Any, new: set[str], source: str | Path) -> None:
    """Raise ModelError if weights of the encoder itself are new: poolers are part of a head."""
    prefix = f"{model.base_model_prefix}."
    lost = sorted(n for n in new if n.startswith(prefix) and not n.startswith(f"{prefix}pooler"))
    if lost:
        raise ModelError(
            f"{source} has no weights for {', '.join(lost[:3])}"
            f"{' and others' if len(lost) > 3 else ''}, or of another size: it is no trained "
            "encoder; choose another"
        )


def _name_pad(config: Any, tokenizer: Tokenizer) -> None:
    """Let a decoder without a pad name the token that ends texts, as transformers wants one."""
    text = config.get_text_config()
    if pad_of(text) is not None:
        return
    plain = tokenizer.plain
    found = plain.pad_token_id if plain.pad_token_id is not None else plain.eos_token_id
    if found is not None and found < text.vocab_size:
        config.pad_token_id = text.pad_token_id = found
