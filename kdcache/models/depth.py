"""A configuration cut down to some of its layers: what it gives layer by layer, or by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdcache.manifest import Json

Layers = tuple[int, ...]
"""Numbers of the blocks that stay, rising; 1 is the first."""


def cut(record: Json, depth: int, layers: Layers) -> Json:
    """What a configuration of `depth` layers says of `layers`, numbered anew; the rest as it is.

    A list as long as the model is deep has an entry a layer, unless `CUTS` or `NOT_BY_LAYER` know
    better.
    """
    return {
        name: value if value is None else _rule(name, value, depth)(value, depth, layers)
        for name, value in _with_sparse_layers(record, depth).items()
    }


Rule = Callable[[Any, int, Layers], Any]


def _rule(name: str, value: Any, depth: int) -> Rule:
    if name in CUTS:
        return CUTS[name]
    by_layer = isinstance(value, list | tuple) and len(value) == depth
    return _entries if by_layer and not _other_list(name) else _as_it_is


def _as_it_is(value: Any, depth: int, layers: Layers) -> Any:
    return value


def _entries(value: Any, depth: int, layers: Layers) -> Any:
    """An entry a layer; one value for all layers stays as it is."""
    return [value[layer - 1] for layer in layers] if isinstance(value, list | tuple) else value


def _numbers(value: Any, depth: int, layers: Layers) -> list[int]:
    """Numbers of layers, 0 the first."""
    return [index for index, layer in enumerate(layers) if layer - 1 in value]


def _keys(value: Any, depth: int, layers: Layers) -> Json:
    """Settings by the number of a layer, 0 the first; configuration files spell it as text."""
    given = {int(number): settings for number, settings in value.items()}
    return {
        str(index): given[layer - 1] for index, layer in enumerate(layers) if layer - 1 in given
    }


def _leading(value: int, depth: int, layers: Layers) -> int:
    """How many of the first `value` layers stay."""
    return sum(layer <= value for layer in layers)


def _trailing(value: int, depth: int, layers: Layers) -> int:
    """How many of the last `value` layers stay."""
    return sum(layer > depth - value for layer in layers)


def _groups(value: Any, depth: int, layers: Layers) -> list[Any]:
    """Kinds of layers and how often they come, [[kinds, times], ...]: GPT-Neo."""
    kinds = [kind for group, times in value for _ in range(times) for kind in group]
    return [[[kinds[layer - 1]], 1] for layer in layers]


def _cycle(value: Any, depth: int, layers: Layers) -> list[Any]:
    """Kinds of layers that come round again: RecurrentGemma."""
    return [value[(layer - 1) % len(value)] for layer in layers]


CUTS: dict[str, Rule] = {
    "no_rope_layers": _entries,  # 0 and 1, which look like numbers of layers where there are two
    "mlp_only_layers": _numbers,
    "moe_layers": _numbers,
    "attn_layer_indices": _numbers,
    "full_attn_idxs": _numbers,
    "local_layer_ids": _numbers,
    "hybrid_layer_ids": _numbers,
    "ple_layer_ids": _numbers,
    "cross_attention_layers": _numbers,
    "rope_scaling_layers": _numbers,
    "per_layer_config": _keys,
    "first_k_dense_replace": _leading,
    "num_dense_layers": _leading,
    "max_window_layers": _leading,
    "moe_layer_start_index": _leading,
    "num_kv_shared_layers": _trailing,
    "attention_types": _groups,
    "block_types": _cycle,
}
"""What hangs on the place of a layer and is no list of the model's depth, or could be taken for
one. Found in the configurations of transformers 5.23, as the lists are."""

NOT_BY_LAYER = {
    "architectures",
    "keys_to_ignore_at_inference",
    "languages",
    "type_vocab_sizes",
    "time_step_limit",
    "mlp_multipliers",
    "ssm_multipliers",
    "axial_pos_shape",
    "axial_pos_embds_dim",
    "block_sizes",
    "block_repeats",
    "image_feature_pool_shape",
    "L_bp_cycles",
}
"""Lists that a shallow model could have as many entries of as layers."""


def _other_list(name: str) -> bool:
    """Whether a list is none of layers: token ids, layers of multi-token prediction, the table."""
    return name in NOT_BY_LAYER or "token" in name or name.startswith("mtp_")


def _with_sparse_layers(record: Json, depth: int) -> Json:
    """Experts in every n-th layer (Qwen's mixtures), given by the numbers of the others."""
    step, dense = record.get("decoder_sparse_step"), record.get("mlp_only_layers")
    if not step or dense is None:
        return record
    others = [layer for layer in range(depth) if layer in dense or (layer + 1) % step]
    return {**record, "decoder_sparse_step": 1, "mlp_only_layers": others}
