"""The sizes of a sweep's students: how many of the teacher's layers, and how wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.models.auto import auto_class
from kdcache.models.blocks import shrunk_config
from kdcache.models.cached_teacher import teacher_config
from kdcache.store import Cache

WIDTHS = ("hidden_size", "intermediate_size", "hidden_dim", "n_inner", "pooler_hidden_size")
"""Fields of configurations that are as many times smaller as a student is narrower."""

HEADS = ("num_attention_heads", "num_key_value_heads")


def spaced(depth: int, layers: int) -> tuple[int, ...]:
    """The numbers of `layers` of a teacher's blocks, evenly spaced, the last among them.

    Raises:
        ConfigError: it does not have so many.
    """
    if type(layers) is not int or not 1 <= layers <= depth:
        raise ConfigError(f"layers is 1 to {depth}, what the teacher has; got {layers!r}")
    return tuple(round((number + 1) * depth / layers) for number in range(layers))


def sized(cache: Cache, folder: Path, layers: int | None, width: int | None) -> Json:
    """What `train` is told of a student of that size.

    Of the teacher's width it takes over layers of the teacher; of another it has new weights, and
    its configuration, the teacher's with narrower layers, is written into `folder`.

    Raises:
        ConfigError: there are no such layers, or none so wide.
        ModelError: the teacher is a module, which has no layers to take.
    """
    teacher = teacher_config(cache)
    depth = teacher.get_text_config().num_hidden_layers
    kept = spaced(depth, depth if layers is None else layers)
    if width is None:
        return {"init_from_teacher": list(kept)}
    config = narrowed(shrunk_config(teacher, kept), width, cache)
    place = folder / f"{len(kept)}-layers-{width}-wide"
    config.save_pretrained(place)
    return {"config": str(place)}


def narrowed(config: Any, width: int, cache: Cache) -> Any:
    """A configuration with layers `width` wide; heads stay as wide as they are, and are fewer.

    Raises:
        ConfigError: heads do not fit into it, or no model can be made of it.
    """
    text = config.get_text_config()
    before, heads = text.hidden_size, text.num_attention_heads
    one = before // heads
    if type(width) is not int or width < one or width % one:
        raise ConfigError(
            f"width is a multiple of {one}, what a head of the teacher takes; got {width!r}"
        )
    for name in (*WIDTHS, *HEADS):
        value = getattr(text, name, None)
        if isinstance(value, int):
            setattr(text, name, max(1, value * width // before))
    try:
        with torch.device("meta"):
            auto_class(cache.plan.task).from_config(config)
    except Exception as error:  # models check their sizes each in their own way
        raise ConfigError(
            f"no model of this family is {width} wide ({type(error).__name__}: {error}): name "
            "configurations of your own (config=...)"
        ) from error
    return config
