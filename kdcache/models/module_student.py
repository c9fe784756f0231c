"""Students that are any `torch.nn.Module`, made to look like a model of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_model, save_model
from torch import nn
from transformers.utils.generic import ModelOutput

from kdcache.errors import ModelError
from kdcache.models.hooks import Reader
from kdcache.models.input_gradients import GRADIENTS, declared_embeddings
from kdcache.models.recording import Forward, Found
from kdcache.models.student_config import StudentConfig, make_student
from kdcache.signals.taps import EMBEDDINGS, LOGITS, TAP_KINDS
from kdcache.tasks import TASKS

WEIGHTS = "model.safetensors"
INSIDE = "student."  # where the module lies in a ModuleStudent


@dataclass
class StudentOutput(ModelOutput):
    """What a module computed of a batch: its logits, and its taps by name, one tensor a layer."""

    logits: torch.Tensor | None = None
    taps: dict[str, tuple[torch.Tensor, ...]] | None = None


class ModuleStudent(transformers.PreTrainedModel):
    """A module, as a Trainer and `run` take models.

    Attributes:
        student: the module.
        tap_readers: how its taps are read, by their names: it gives no others.
    """

    config_class = StudentConfig
    config: StudentConfig

    def __init__(self, config: StudentConfig, student: nn.Module | None = None) -> None:
        super().__init__(config)
        self.student = make_student(config) if student is None else student
        self.register_state_dict_post_hook(_plain_names)  # type: ignore[no-untyped-call]  # torch's
        self.register_load_state_dict_pre_hook(_own_names)  # type: ignore[no-untyped-call]  # too
        self._typed = "token_type_ids" in inspect.signature(self.student.forward).parameters
        self.tap_readers = {
            name: Reader(take=partial(TAKE.get(name, _declared), name))
            for name in (LOGITS.name, *config.tap_widths)
        }
        if EMBEDDINGS.name in config.tap_widths:
            self.tap_readers |= {
                name: Reader(gradient=partial(of_kind, declared_embeddings))
                for name, of_kind in GRADIENTS.items()
            }

    @classmethod
    def from_pretrained(  # type: ignore[override]  # from a folder, with its configuration
        cls,
        source: str | Path,
        *,
        config: StudentConfig,
        dtype: torch.dtype | None = None,
        output_loading_info: bool = False,
        **_: Any,
    ) -> Any:
        """The student in a folder, in evaluation mode, as a model of transformers' would be."""
        model = cls(config)
        load_weights(model.student, Path(source) / WEIGHTS)
        nn.Module.to(model, dtype or torch.float32).train(False)
        info: dict[str, Any] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
        return (model, info) if output_loading_info else model

    def save_pretrained(  # type: ignore[override]  # what a Trainer and a run ask for
        self, save_directory: str | Path, *, is_main_process: bool = True, **_: Any
    ) -> None:
        """Write weights, under the module's own names for them, and `kdcache_student.json`."""
        if is_main_process:
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            self.config.save_pretrained(folder)
            save_model(self, str(folder / WEIGHTS), metadata={"format": "pt"})

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> StudentOutput:
        """Run the module; its taps are there whether anybody asks for them or not."""
        more = {"token_type_ids": token_type_ids} if self._typed else {}
        out = self.student(input_ids=input_ids, attention_mask=attention_mask, **more)
        return StudentOutput(
            logits=part(out, LOGITS.name),
            taps={name: layers_of(part(out, name)) for name in self.config.tap_widths},
        )


def load_weights(module: nn.Module, file: Path) -> None:
    """Give a module the weights in a file, in which tied ones are once.

    Raises:
        ModelError: the file lacks one of the module's weights, or has one that it has not, or of
            another shape.
    """
    try:
        missing, unexpected = load_model(module, file, strict=False)
    except RuntimeError as error:  # of another shape: torch says so in several lines
        text = " ".join(str(error).split())
        raise ModelError(f"{file} does not fit {type(module).__name__}: {text}") from error
    apart = [("lacks", missing), ("has", unexpected)]
    told = [f"{what} {', '.join(sorted(names)[:3])}" for what, names in apart if names]
    if told:
        raise ModelError(
            f"{file} is not of this {type(module).__name__}, by the names of its weights: it "
            f"{' and '.join(told)}; give the class and settings that it was saved with"
        )


def _plain_names(_model: nn.Module, state: Any, prefix: str, _metadata: Any) -> None:
    """Leave out of the names of weights that a module lies in a ModuleStudent."""
    for name in [name for name in state if name.startswith(prefix)]:  # others hold other models
        state[prefix + name.removeprefix(prefix).removeprefix(INSIDE)] = state.pop(name)


def _own_names(model: nn.Module, state: Any, prefix: str, *_: Any) -> None:
    """The other way round, for what a folder or a checkpoint holds."""
    outer = [name for name, _ in model.named_children() if name + "." != INSIDE]
    for name in [name for name in state if name.startswith(prefix)]:
        plain = name.removeprefix(prefix)
        moved = "" if plain.partition(".")[0] in outer else INSIDE
        state[prefix + moved + plain] = state.pop(name)


def part(out: Any, name: str) -> Any:
    """What a module returned under a name, its logits where it returned a tensor; None: nothing."""
    if isinstance(out, torch.Tensor):
        return out if name == LOGITS.name else None
    return out.get(name) if isinstance(out, Mapping) else getattr(out, name, None)


def layers_of(value: Any) -> tuple[Any, ...]:
    """The tensors of a tap, one a layer."""
    return (value,) if isinstance(value, torch.Tensor) else tuple(value or ())


def _logits(name: str, forward: Forward) -> Found:
    logits: torch.Tensor = forward.out.logits
    return {None: logits if forward.rows is None else logits.flatten(0, -2)[forward.rows]}


def _declared(name: str, forward: Forward) -> Found:
    first, layers = TAP_KINDS[name].first, forward.out.taps[name]
    return {None: layers[0]} if first is None else dict(enumerate(layers, first))


TAKE: dict[str, Callable[[str, Forward], Found]] = {LOGITS.name: _logits}
"""What is read otherwise than as the module declares it."""

for auto in {task.auto for task in TASKS.values()}:  # where transformers looks for a configuration
    getattr(transformers, auto).register(StudentConfig, ModuleStudent)
