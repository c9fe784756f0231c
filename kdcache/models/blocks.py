"""Students made of a teacher's blocks, and proof that they compute what those blocks compute."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from kdcache.errors import ConfigError, ModelError
from kdcache.models.auto import load_config
from kdcache.models.depth import Layers, cut
from kdcache.models.run import run, untouched
from kdcache.plans.batch import Batch
from kdcache.signals import LOGITS, Activations, Tap
from kdcache.tasks import Task

TOLERANCE = 1e-5  # of the largest value: the same operations in the same order, in float32
LONGEST = 200  # characters of another library's message
NOT_SAVED = {"_name_or_path", "transformers_version"}


def shrunk_config(config: Any, layers: Layers) -> Any:
    """The configuration of a student that has only `layers` of a teacher's blocks.

    It is what a file of it reads as. Raises ConfigError for layers the teacher lacks, ModelError
    if the architecture cannot be described so.
    """
    text = config.get_text_config()
    depth = text.num_hidden_layers
    if min(layers) < 1 or max(layers) > depth or list(layers) != sorted(set(layers)):
        raise ConfigError(
            f"--init-from-teacher takes rising layers from 1 to {depth}; got {_listed(layers)}"
        )
    try:
        found = _reloaded(type(config).from_dict(_record(config, text, layers)))
        same = _reloaded(found).to_dict() == found.to_dict()
    except Exception as error:  # configurations check themselves, with exceptions of every kind
        raise _refusal(config, layers, _reason(error)) from error
    if not same or found.get_text_config().num_hidden_layers != len(layers):
        raise _refusal(config, layers, "its configuration does not read back as it was written")
    return found


def _record(config: Any, text: Any, layers: Layers) -> dict[str, Any]:
    """The dictionary of `config` with that of its `text` part, perhaps itself, cut."""
    small = cut(text.to_dict(), text.num_hidden_layers, layers)
    small[text.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(layers)
    if text is config:
        return small
    (part,) = (name for name in config.sub_configs if getattr(config, name) is text)
    return {**config.to_dict(), part: small}


def _reloaded(config: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        found = load_config(folder)
    for name in NOT_SAVED & set(vars(found)):
        setattr(found, name, vars(config).get(name))
    return found


def copy_blocks(teacher: Any, student: Any, layers: Layers) -> None:
    """Give the student the teacher's weights, of its blocks those of `layers`.

    Raises ModelError if the blocks are not in one list, or are not all that hangs on the depth.
    """
    prefix, _ = blocks_of(teacher)
    block = re.compile(rf"^{re.escape(prefix)}\.(\d+)\.")
    place = {layer - 1: index for index, layer in enumerate(layers)}
    state = {}
    for name, tensor in teacher.state_dict().items():
        found = block.match(name)
        if found is None:
            state[name] = tensor
        elif int(found[1]) in place:
            state[f"{prefix}.{place[int(found[1])]}.{name[found.end() :]}"] = tensor
    try:
        student.load_state_dict(state)
    except RuntimeError as error:
        raise _refusal(student.config, layers, _reason(error)) from error


def require_same_states(
    teacher: Any, student: Any, layers: Layers, task: Task, batch: Batch
) -> None:
    """Raise ModelError unless both say the same of `batch`, the teacher's other blocks passed over.

    Hidden states and logits are compared. The teacher keeps its own configuration for that, so
    that what the student's got wrong shows. Neither the models nor the random generators change.
    """
    taps = [LOGITS, Tap("hidden")]
    try:
        with untouched(student, teacher):
            ours = run(student, batch, taps, task=task)
            with _passing_over(teacher, layers):
                theirs = run(teacher, batch, taps, task=task)
    except Exception as error:  # a model run in a way it was not made for fails in any way
        raise _refusal(student.config, layers, _reason(error)) from error
    apart = _difference(ours, theirs, layers)
    if apart:
        raise _refusal(student.config, layers, apart)


def _difference(ours: Activations, theirs: Activations, layers: Layers) -> str:
    """What differs beyond rounding; empty if nothing does."""
    found, states = ours.layers("hidden"), theirs.layers("hidden")
    expected = (0, *layers[:-1], len(states) - 1)  # the last state is normalised in many models
    if len(found) != len(expected):
        return f"it gives {len(found)} hidden states, not {len(expected)}"
    pairs = [
        (f"hidden states after {layer} blocks", found[layer], states[of])
        for layer, of in enumerate(expected)
    ]
    for what, mine, other in [*pairs, ("logits", ours[LOGITS], theirs[LOGITS])]:
        if mine.shape != other.shape:
            return f"its {what} are {list(mine.shape)}, the teacher's {list(other.shape)}"
        apart, scale = float((mine - other).abs().max()), float(other.abs().max())
        if not apart <= TOLERANCE * scale:  # NaN is no equality either
            return f"its {what} differ from theirs by {apart:.3g} of {scale:.3g}"
    return ""


def _refusal(config: Any, layers: Layers, why: str) -> ModelError:
    return ModelError(
        f"a {config.model_type} of the teacher's blocks {_listed(layers)} alone does not compute "
        f"what they compute in the teacher ({why}): choose other layers, or make the student from "
        "a configuration (--config)"
    )


def _reason(error: Exception) -> str:
    """One line of what may be many."""
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _listed(layers: Sequence[int]) -> str:
    return "-".join(map(str, layers))


def blocks_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Name and modules of the list of the model's blocks."""
    depth = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return str(name), module
    raise ModelError(f"cannot find the {depth} layers of {type(model).__name__}; use --config")


@contextmanager
def _passing_over(model: Any, layers: Layers) -> Iterator[None]:
    """Let all blocks but `layers` hand on the hidden states that they are given."""
    _, blocks = blocks_of(model)
    with ExitStack() as stack:
        for layer, block in enumerate(blocks, start=1):
            if layer not in layers:
                # Before other hooks: those of transformers record what a block says.
                handle = block.register_forward_hook(_hand_on, prepend=True, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _hand_on(block: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
    states = args[0] if args else given["hidden_states"]
    return (states, *output[1:]) if isinstance(output, tuple) else states
