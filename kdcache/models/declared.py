"""What a student that is a module says of itself, and whether it keeps to that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers
from torch import nn

from kdcache.errors import ConfigError, ModelError, one_of
from kdcache.models.module_student import ModuleStudent, StudentOutput
from kdcache.models.run import INPUTS, untouched
from kdcache.models.student_config import StudentConfig, Widths, name_of_class
from kdcache.models.together import TogetherModel, together_config
from kdcache.plans.batch import Batch
from kdcache.signals.taps import LOGITS, TAP_KINDS, TapKind
from kdcache.students import Together

if TYPE_CHECKING:
    from kdcache.store import Cache

EXAMPLE = '{"hidden": [300, 64, 64], "pooled": 64}'


class Kind(NamedTuple):
    """How a module of some kind is taken.

    Attributes:
        config: its configuration for a cache.
        model: the module as a model, of its configuration.
    """

    config: Callable[[Cache, Any], Any]
    model: Callable[[Any, Any], Any]


def _kind(module: nn.Module) -> Kind:
    return next(kind for known, kind in KINDS.items() if isinstance(module, known))


def module_config(cache: Cache, module: nn.Module) -> Any:
    """The configuration of a student: its own where it is a model of transformers'.

    Raises ConfigError for taps or settings that are none, ModelError for other outputs than the
    cache has.
    """
    return _kind(module).config(cache, module)


def adapted(module: nn.Module, config: Any) -> Any:
    """A module as a model; as it is where it is one of transformers'.

    Raises ModelError if it has no weights.
    """
    return _kind(module).model(module, config)


def _own_config(cache: Cache, module: transformers.PreTrainedModel) -> Any:
    outputs = module.config.num_labels
    if cache.plan.task.labelled and outputs != cache.shape.outputs:
        raise ModelError(
            f"{type(module).__name__} has {outputs} outputs (num_labels) and the cache "
            f"{cache.shape.outputs}: make the student with as many"
        )
    return module.config


def _as_it_is(module: nn.Module, config: Any) -> Any:
    return module


def _together_config(cache: Cache, module: Together) -> Any:
    members = [module_config(cache, student) for student in module.students]
    return together_config(name_of_class(type(module)), members, causal=cache.plan.task.causal)


def _together(module: Together, config: Any) -> Any:
    pairs = zip(module.students, config.members, strict=True)
    return TogetherModel(config, [adapted(student, own) for student, own in pairs])


def _declared_config(cache: Cache, module: nn.Module) -> Any:
    plan = cache.plan.config
    vocabulary: Any = getattr(module, "vocabulary", plan.tokenizer["vocab_size"])
    return StudentConfig(
        student=name_of_class(type(module)),
        settings=_settings(module),
        tap_widths=declared_widths(module),
        architectures=["Student" + cache.plan.task.heads[0]],
        vocab_size=vocabulary,
        pad_token_id=plan.tokenizer["pad_id"],
        is_decoder=cache.plan.task.causal,
    )


def declared_widths(module: nn.Module) -> Widths:
    """The widths of the taps in `module.taps`; ConfigError for a declaration of no meaning."""
    where, found = f"{type(module).__name__}.taps", getattr(module, "taps", {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where} names taps with their widths, such as {EXAMPLE}; got {found!r}")
    able = [name for name, kind in TAP_KINDS.items() if _declarable(kind)]
    return {
        one_of(f"tap in {where}", name, able): _widths(where, name, value)
        for name, value in found.items()
    }


def _declarable(kind: TapKind) -> bool:
    """Logits it gives anyway, and gradients follow from its embeddings; how query and key would
    meet, a width does not tell.
    """
    return kind.per != "row" and "head_width" not in kind.width and not kind.gradient


def _widths(where: str, name: str, value: Any) -> list[int]:
    layered = TAP_KINDS[name].first is not None
    widths = list(value) if layered and isinstance(value, list | tuple) else [value]
    if layered != isinstance(value, list | tuple) or not all(
        type(width) is int and width > 0 for width in widths
    ):
        wanted = "a list of widths, one a layer" if layered else "a width"
        raise ConfigError(f"{where}[{name!r}] is {wanted}, as in {EXAMPLE}; got {value!r}")
    return widths


def _settings(module: nn.Module) -> dict[str, Any] | None:
    settings = getattr(module, "settings", None)
    if settings is None:
        return None
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{type(module).__name__}.settings holds the arguments of its constructor as JSON "
            f"values, or is left out; got {settings!r}"
        ) from error
    return found


def _wrapped(module: nn.Module, config: Any) -> Any:
    if next(module.parameters(), None) is None:
        raise ModelError(f"{type(module).__name__} has no parameters: there is nothing to train")
    return ModuleStudent(config, module)


KINDS: dict[type[nn.Module], Kind] = {
    transformers.PreTrainedModel: Kind(_own_config, _as_it_is),
    Together: Kind(_together_config, _together),
    nn.Module: Kind(_declared_config, _wrapped),
}
"""The first that a module is of."""


def require_declared(model: Any, cache: Cache) -> None:
    """Run a model that declares its taps on documents of a cache, before anything is trained.

    Raises ModelError where it cannot be run, or gives other shapes than it declares and the cache
    has.
    """
    if not hasattr(model, "tap_readers"):
        return
    batch = _documents(cache, model.config.vocab_size).to(model.device)
    for given in _given(_run(model, batch), model.config, batch, cache):
        given.check(type(model.student).__name__, *batch["input_ids"].shape)


class _Given(NamedTuple):
    """What a module gave under a name, the shape that is expected, and who expects it."""

    what: str
    value: Any
    shape: tuple[int, ...]
    whose: str

    def check(self, who: str, documents: int, length: int) -> None:
        value = self.value
        tensor = isinstance(value, torch.Tensor)
        if tensor and tuple(value.shape) == self.shape:
            return
        came = list(value.shape) if tensor else "nothing" if value is None else type(value).__name__
        raise ModelError(
            f"{who} gives {came} for its {self.what} of {documents} documents of {length} tokens; "
            f"{self.whose} {list(self.shape)}: let its forward return that"
        )


def _given(out: StudentOutput, config: Any, batch: Batch, cache: Cache) -> Iterator[_Given]:
    documents, length = batch["input_ids"].shape
    per_token = cache.plan.task.rows != "document"
    space = (documents, length) if per_token else (documents,)
    yield _Given(
        LOGITS.name, out.logits, (*space, cache.shape.outputs), "the cache's teacher gives"
    )
    for name, widths in config.tap_widths.items():
        kind, values = TAP_KINDS[name], (out.taps or {})[name]
        if len(values) != len(widths):
            raise ModelError(
                f"{config.student} gives {len(values)} layers of {name} and declares "
                f"{len(widths)} widths in its taps: let its forward return as many"
            )
        space = (documents, length) if kind.per == "token" else (documents,)
        for layer, (value, width) in enumerate(zip(values, widths, strict=True), kind.first or 0):
            what = name if kind.first is None else f"{name} of layer {layer}"
            yield _Given(what, value, (*space, width), "its taps declare")


def _documents(cache: Cache, vocabulary: int) -> Batch:
    """The longest and the shortest document, with the largest id there may be among them."""
    docs = cache.plan.docs
    lengths = cache.plan.per_document["doc_len"][docs]
    batch = cache.batch(docs[[int(lengths.argmax()), int(lengths.argmin())]], [])
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][0, lengths.max() // 2] = vocabulary - 1
    return batch


def _run(model: ModuleStudent, batch: Batch) -> StudentOutput:
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    who = type(model.student).__name__
    try:
        with untouched(model):
            out: StudentOutput = model(**inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever code of a user's may do
        text, shape = " ".join(str(error).split()), list(inputs["input_ids"].shape)
        raise ModelError(
            f"{who} cannot be run on input_ids and attention_mask of {shape} with ids up to "
            f"{int(inputs['input_ids'].max())} ({type(error).__name__}: {text}): "
            "change it, or let its attribute `vocabulary` tell how many ids it has rows for"
        ) from error
    return out
