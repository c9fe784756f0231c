"""Small models of every architecture whose parts are read out, and a batch of real text."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers

from kdcache.corpora.standard_library import prose
from kdcache.plans.batch import Batch
from kdcache.signals import Activations, Tap

CLASSES: str = "text-classification"
AUTO: dict[str, Any] = {
    CLASSES: transformers.AutoModelForSequenceClassification,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "causal-lm": transformers.AutoModelForCausalLM,
}
SIZES: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
DECODER: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "Electra": {**SIZES, "embedding_size": 16},
    "Albert": {**SIZES, "embedding_size": 16},
    "DistilBert": {
        "vocab_size": 600,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    },
    "MobileBert": {  # nothing normalises what it adds up: larger weights, larger rounding
        **SIZES,
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
        "initializer_range": 0.1,
    },
    "ModernBert": {**SIZES, "local_attention": 8, "layer_types": SLIDING},
    "GPT2": {
        "vocab_size": 600,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": 0.2,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "Llama": DECODER,
    "Qwen3": {**DECODER, "use_sliding_window": True, "sliding_window": 5, "layer_types": SLIDING},
    "Gemma3Text": {
        **DECODER,
        "query_pre_attn_scalar": 16,
        "sliding_window": 5,
        "layer_types": SLIDING,
    },
    "Mistral": {**DECODER, "sliding_window": 5},
    "SmolLM3": {**DECODER, "no_rope_layers": [1, 0, 1]},
}
"""Those that give every tap; the key heads of some are fewer."""
APART: dict[str, dict[str, Any]] = {
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "MPNet": SIZES,
    "T5": {
        "vocab_size": 600,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 3,
        "num_heads": 4,
        "initializer_factor": 0.5,
        "decoder_start_token_id": 0,
    },
}
"""Those whose attention is not made of query and key alone."""
CAPPED = {"Gemma2": {**DECODER, "attn_logit_softcapping": 2.0, "sliding_window": 5}}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
QKV = ("query", "key", "value")


def model_of(family: str, task: str = CLASSES, *, attention: str | None = None, **more: Any) -> Any:
    """A model of a family, always of the same weights, dropout off."""
    sizes = {**FAMILIES, **APART, **CAPPED}[family]
    kind = getattr(transformers, f"{family}Config")
    config = kind(**{**sizes, **SPECIAL, "num_labels": 3, **more})
    how = {} if attention is None else {"attn_implementation": attention}
    torch.manual_seed(5)
    return AUTO[task].from_config(config, **how).eval()


def batch_of(tokenizer: Path) -> Batch:
    """Sentences of unequal length, each ending in the only end token; some positions are masked."""
    words = [text.split() for text in prose()[400:405]]
    texts = [" ".join(text[:n]) for text, n in zip(words, (16, 4, 9, 2, 16), strict=True)]
    read = transformers.AutoTokenizer.from_pretrained(tokenizer)
    made = read(texts, padding=True, truncation=True, max_length=22, return_tensors="pt")
    lengths = made["attention_mask"].sum(1)
    assert lengths.unique().numel() > 2
    width = made["input_ids"].shape[1]
    selected = torch.arange(len(texts)) * width + lengths // 2
    return Batch(docs=torch.arange(len(texts)), selected=selected, **made)


def inputs(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """The batch as transformers takes it."""
    taken = inspect.signature(model.forward).parameters
    return {name: batch[name] for name in batch.keys() & taken.keys()}


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def attend(found: Activations, layer: int) -> torch.Tensor:
    """How much each token attends to each, [B, heads, L, L]."""
    query, key = found[Tap("query", layer)], found[Tap("key", layer)]
    return found.attention[layer].scores(query, key).softmax(-1)
