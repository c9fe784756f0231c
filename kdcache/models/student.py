"""Students, and the ways to make one: a checkpoint, a configuration, teacher layers, a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from kdcache.errors import ConfigError, ModelError
from kdcache.models.auto import (
    auto_class,
    load_config,
    require_direction,
    require_sizes,
    require_weights,
    unreadable,
)
from kdcache.models.blocks import copy_blocks, require_same_states, shrunk_config
from kdcache.models.built import built, built_config, is_built
from kdcache.models.cached_teacher import teacher_config, teacher_embeddings, teacher_model
from kdcache.models.declared import adapted, module_config, require_declared
from kdcache.models.recording import members_of
from kdcache.models.sharing import doubled, halved, put_above, require_halves, share
from kdcache.models.student_fit import (
    name_pad,
    require_length,
    require_tokens,
    set_classes,
    take_generation,
)
from kdcache.models.teacher import model_sizes
from kdcache.models.together import TogetherModel, together_config
from kdcache.models.token_map import require_same_vocabulary
from kdcache.models.trimmed_model import trim, trimmed_config
from kdcache.plans.batch import Batch
from kdcache.signals import ModelSizes

if TYPE_CHECKING:
    from kdcache.store import Cache

COMPARED_TOKENS = 512  # at most, of the document that student and teacher are compared on


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """Where a student comes from: exactly one of WAYS.

    Attributes:
        checkpoint: folder or hub name of a pretrained model.
        config: folder or file of a configuration; weights are drawn anew.
        init_from_teacher: hidden layers of the teacher (1 is its first block's output) whose blocks
            the student copies, with the embeddings and the head.
        built: name and settings of a student of `kdcache.students`, with new weights.
        module: a `torch.nn.Module` that is trained as it is.
        together: students that are trained as one module, each a checkpoint or a built one.
        whole: whether the checkpoint is all of a student: none of its weights is drawn anew.
        same_tokenizer: a person's word that a checkpoint without a tokenizer, which therefore
            cannot be compared, has the vocabulary of the cache's.
        shared: how the upper half of its blocks uses the parameters of the lower half, one of
            SHARED; "": each has its own. The layers of `init_from_teacher` are then the lower
            half; other students come with both.
        trust_remote_code: whether a checkpoint may be of a class that is none of kdcache's.
    """

    checkpoint: str | None = None
    config: str | None = None
    init_from_teacher: tuple[int, ...] | None = None
    built: str | None = None
    module: Any = field(default=None, compare=False)
    together: tuple[str, ...] = ()
    whole: bool = False
    same_tokenizer: bool = False
    shared: str = ""
    trust_remote_code: bool = False

    @property
    def given(self) -> list[str]:
        """The ways that something is given for."""
        return [name for name in WAYS if getattr(self, name) not in (None, "", ())]

    @property
    def each(self) -> list[StudentSpec]:
        """Where each of the students that are trained together comes from."""
        trust = self.trust_remote_code
        return [
            StudentSpec(built=source)
            if is_built(source)
            else StudentSpec(checkpoint=source, trust_remote_code=trust)
            for source in self.together
        ]

    @property
    def way(self) -> Way:
        """How it is made."""
        return WAYS[self.given[0]]

    def __post_init__(self) -> None:
        given = self.given
        if len(given) != 1:
            raise ConfigError(
                "a student comes from exactly one of a checkpoint (--student), teacher layers "
                f"(--init-from-teacher 2-4-6) or a configuration (--config); got {len(given)}"
            )
        if self.same_tokenizer and not self.checkpoint:
            raise ConfigError(
                "--same-tokenizer is for a checkpoint (--student); others take the cache's "
                "tokenizer: leave it out"
            )


def student_config(spec: StudentSpec, cache: Cache) -> Any:
    """The student's configuration, with the cache's classes; nothing else is loaded.

    Raises ModelError if it lacks a token of the plan's documents, ConfigError for a layer the
    teacher lacks.
    """
    if cache.kept is not None and not spec.whole:
        return trimmed_config(student_config(spec, cache.original), cache.kept)
    config = spec.way.config(cache, spec)
    if spec.shared:
        if spec.module is not None or spec.built or spec.together:
            raise ConfigError(
                f"student.shared={spec.shared} is for models of transformers: choose one, or "
                "--set student.shared="
            )
        config = doubled(config) if spec.init_from_teacher else config
        require_halves(config, spec.shared)
    for one in (config, *getattr(config, "members", ())):
        _fit(one, spec, cache)
    return config


def _fit(config: Any, spec: StudentSpec, cache: Cache) -> None:
    """Give a configuration the cache's classes; raises ModelError if it does not suit the plan."""
    plan = cache.plan.config
    require_direction(config, cache.plan.task, spec.checkpoint or spec.config or "the student")
    if cache.plan.task.labelled:
        set_classes(config, cache.plan.label_kind, plan.classes, cache.shape.outputs)
    require_tokens(config, cache)


def student_sizes(spec: StudentSpec, cache: Cache) -> ModelSizes:
    """Outputs, hidden width and layers of a student, from configurations alone."""
    return model_sizes(student_config(spec, cache), cache.plan.task)


def load_student(cache: Cache, spec: StudentSpec, *, seed: int) -> Any:
    """Make the student; new weights are drawn from `seed`.

    One with fewer tokens is made with all, and has the rows that the other would have.

    Raises ModelError or ConfigError if it cannot be made, or does not take the plan's documents.
    """
    if cache.kept is not None and not spec.whole:
        student = load_student(cache.original, spec, seed=seed)
        trim(student, cache)
        return student
    config = student_config(spec, cache)
    if spec.checkpoint:
        require_same_vocabulary(cache, spec.checkpoint, unless_none=spec.same_tokenizer)
    torch.manual_seed(seed)
    student = _shared(cache, config, spec) if spec.shared else spec.way.make(cache, config, spec)
    for one in members_of(student):
        require_declared(one, cache)
        name_pad(one.config.get_text_config(), cache)
        if not spec.checkpoint:
            take_generation(one, cache)
        require_length(one, cache)
    return student


def _shared(cache: Cache, config: Any, spec: StudentSpec) -> Any:
    """A student whose blocks share parameters."""
    if spec.init_from_teacher:
        lower = spec.way.make(cache, halved(config), spec)
        student = _drawn(cache, config)
        put_above(lower, student)
    else:
        student = spec.way.make(cache, config, spec)
    share(student, spec.shared)
    return student


def _from_checkpoint(cache: Cache, config: Any, source: str, *, whole: bool) -> Any:
    auto = auto_class(cache.plan.task)
    try:
        student, info = auto.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `require_sizes` says which ones
        )
    except ModelError:
        raise
    except Exception as error:  # weights fail to load in as many ways as there are file formats
        raise ModelError(unreadable("student", source, error)) from error
    require = require_weights if whole else require_sizes
    require(info, source)
    return student


def _from_teacher(cache: Cache, config: Any, layers: tuple[int, ...]) -> Any:
    task = cache.plan.task
    student = auto_class(task).from_config(config, dtype=torch.float32)
    teacher = teacher_model(cache)
    copy_blocks(teacher, student, layers)
    require_same_states(teacher, student, layers, task, _document(cache))
    return student


def _document(cache: Cache) -> Batch:
    """The longest document that takes no time to run; the shortest if all are long."""
    lengths = cache.plan.per_document["doc_len"][cache.plan.docs]
    short = np.where(lengths <= COMPARED_TOKENS, lengths, -lengths)
    return cache.batch(cache.plan.docs[[int(short.argmax())]], [])


def _config_of_several(cache: Cache, spec: StudentSpec) -> Any:
    members = [student_config(one, cache) for one in spec.each]
    return together_config("together", members, causal=cache.plan.task.causal)


def _several(cache: Cache, config: Any, spec: StudentSpec) -> Any:
    members = []
    for own, one in zip(config.members, spec.each, strict=True):
        if one.checkpoint:
            require_same_vocabulary(cache, one.checkpoint, unless_none=False)
        members.append(one.way.make(cache, own, one))
    return TogetherModel(config, members)


def _drawn(cache: Cache, config: Any) -> Any:
    return auto_class(cache.plan.task).from_config(config)


class Way(NamedTuple):
    """How a student is made.

    Attributes:
        config: its configuration, from a cache and what a person says of it.
        make: the student, from these and that configuration with the cache's classes.
    """

    config: Callable[[Cache, StudentSpec], Any]
    make: Callable[[Cache, Any, StudentSpec], Any]


WAYS: dict[str, Way] = {
    "checkpoint": Way(
        lambda cache, spec: load_config(
            spec.checkpoint or "", trust_remote_code=spec.trust_remote_code
        ),
        lambda cache, config, spec: _from_checkpoint(
            cache, config, spec.checkpoint or "", whole=spec.whole
        ),
    ),
    "config": Way(
        lambda cache, spec: load_config(spec.config or ""),
        lambda cache, config, spec: _drawn(cache, config),
    ),
    "init_from_teacher": Way(
        lambda cache, spec: shrunk_config(teacher_config(cache), spec.init_from_teacher or ()),
        lambda cache, config, spec: _from_teacher(cache, config, spec.init_from_teacher or ()),
    ),
    "built": Way(
        lambda cache, spec: built_config(cache, spec.built or ""),
        lambda cache, config, spec: built(
            cache, config, spec.built or "", partial(teacher_embeddings, cache)
        ),
    ),
    "module": Way(
        lambda cache, spec: module_config(cache, spec.module),
        lambda cache, config, spec: adapted(spec.module, config),
    ),
    "together": Way(
        lambda cache, spec: _config_of_several(cache, spec),
        lambda cache, config, spec: _several(cache, config, spec),
    ),
}
"""By field of StudentSpec, and of a recipe's [student] table."""
