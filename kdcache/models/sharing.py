"""Students whose blocks share parameters. SHARED is the table of ways."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from kdcache.errors import ConfigError, ModelError
from kdcache.models.blocks import blocks_of
from kdcache.models.projections import NAMES
from kdcache.models.recording import name_of

SWAPPED = dict(zip(NAMES["query"], NAMES["key"], strict=True))
SWAPPED |= {key: query for query, key in SWAPPED.items()}
"""What the maps of queries and keys are called in BERT and its like, each with the other."""


def shuffled(lower: nn.Module, upper: nn.Module) -> None:
    """Let a block use the parameters of a lower one, queries made by its keys' map and vice versa.

    Raises ModelError for a block without a map of queries and one of keys, of one size.

    Source: Cho and Kang 2022 (Pea-KD), arXiv:2009.14822.
    """
    maps = {path: m for path, m in lower.named_modules() if path.rpartition(".")[2] in SWAPPED}
    if len(maps) != 2 or len({m.weight.shape for m in maps.values()}) != 1:
        raise ModelError("it has no map of queries and one of keys by names that are known here")
    for path, parameter in list(lower.named_parameters()):
        module, _, name = path.rpartition(".")
        setattr(upper.get_submodule(_exchanged(module)), name, parameter)


def _exchanged(path: str) -> str:
    """The path of a module with the names of query and key exchanged."""
    return ".".join(SWAPPED.get(part, part) for part in path.split("."))


SHARED: dict[str, Callable[[nn.Module, nn.Module], None]] = {"shuffled": shuffled}
"""How a block of the upper half of a student uses the parameters of its block in the lower half:
what makes the upper one do so, given the two."""


def doubled(config: Any) -> Any:
    """The configuration of a student with its blocks twice, the second time above the first."""
    return _of_depth(config, 2.0)


def halved(config: Any) -> Any:
    """The configuration of which another is `doubled`."""
    return _of_depth(config, 0.5)


def _of_depth(config: Any, factor: float) -> Any:
    made = copy.deepcopy(config)
    text = made.get_text_config()
    text.num_hidden_layers = int(factor * text.num_hidden_layers)
    return made


def require_halves(config: Any, shared: str) -> None:
    """Raise ConfigError unless a student has as many blocks that share as are shared."""
    depth = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if depth < 2 or depth % 2:
        raise ConfigError(
            f"student.shared={shared} lets the upper half of the blocks use the parameters of the "
            f"lower half, and the student has {depth}: choose one with an even number of them, or "
            "--set student.shared="
        )


def put_above(model: Any, whole: Any) -> None:
    """Give a model of twice as many blocks the weights of another, its own below."""
    whole.load_state_dict(model.state_dict(), strict=False)


def share(model: Any, shared: str) -> None:
    """Let the upper half of the blocks use the parameters of the lower half from now on.

    Saved, both halves are written, so that the folder is one of transformers' like any other.

    Raises ModelError for a model whose blocks cannot do so.
    """
    try:
        prefix, blocks = blocks_of(model)
        half = len(blocks) // 2
        for lower, upper in zip(blocks[:half], blocks[half:], strict=True):
            SHARED[shared](lower, upper)
    except ModelError as error:
        raise ModelError(
            f"student.shared={shared} takes a model whose blocks attend by query and key, such as "
            f"BERT, RoBERTa, ELECTRA or DistilBERT; {name_of(model)} is none ({error}): choose "
            "another student, or --set student.shared="
        ) from error
    uppers = tuple(f"{prefix}.{place}." for place in range(half, len(blocks)))
    model.register_state_dict_post_hook(partial(_apart, uppers))


def _apart(uppers: tuple[str, ...], _model: nn.Module, state: Any, prefix: str, _: Any) -> None:
    """Let a model's state have tensors of its own for the upper half, or a file held them once."""
    for name, tensor in state.items():
        if name.removeprefix(prefix).startswith(uppers):
            state[name] = tensor.clone()
