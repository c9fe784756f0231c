"""Students, and the ways to make one: a checkpoint, a configuration, teacher layers, a module."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers

from kdcache.errors import ConfigError, ModelError
from kdcache.labels import LabelKind
from kdcache.models.auto import (
    auto_class,
    load_config,
    require_direction,
    require_sizes,
    require_token_types,
    unreadable,
)
from kdcache.models.blocks import copy_blocks, require_same_states, shrunk_config
from kdcache.models.built import built, built_config, is_built
from kdcache.models.declared import adapted, module_config, require_declared
from kdcache.models.largest_id import require_ids
from kdcache.models.padding import pad_of
from kdcache.models.recording import members_of
from kdcache.models.sharing import doubled, halved, put_above, require_halves, share
from kdcache.models.teacher import load_teacher, model_sizes, most_tokens
from kdcache.models.teacher_again import require_same_teacher
from kdcache.models.together import TogetherModel, together_config
from kdcache.models.token_map import require_same_vocabulary
from kdcache.plans.batch import Batch
from kdcache.signals import ModelSizes

if TYPE_CHECKING:
    from kdcache.store import Cache

ENDS = 256  # documents whose last token is looked at before a pad is chosen
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
        _set_classes(config, cache.plan.label_kind, plan.classes, cache.shape.outputs)
    require_tokens(config, cache)


def require_tokens(config: Any, cache: Cache) -> None:
    """Raise ModelError if a student's configuration lacks a token of a cache, or a type of one."""
    way = "choose a student with the teacher's tokenizer, or leave the document out"
    require_ids(cache.plan, config.get_text_config().vocab_size, "the student", way)
    require_token_types(config, cache.plan, "the student")


def student_sizes(spec: StudentSpec, cache: Cache) -> ModelSizes:
    """Outputs, hidden width and layers of a student, from configurations alone."""
    return model_sizes(student_config(spec, cache), cache.plan.task)


def load_student(cache: Cache, spec: StudentSpec, *, seed: int) -> Any:
    """Make the student; new weights are drawn from `seed`.

    Raises ModelError or ConfigError if it cannot be made, or does not take the plan's documents.
    """
    config = student_config(spec, cache)
    if spec.checkpoint:
        require_same_vocabulary(cache, spec.checkpoint, unless_none=spec.same_tokenizer)
    torch.manual_seed(seed)
    student = _shared(cache, config, spec) if spec.shared else spec.way.make(cache, config, spec)
    for one in members_of(student):
        require_declared(one, cache)
        _name_pad(one.config.get_text_config(), cache)
        if not spec.checkpoint:
            _take_generation(one, cache)
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


def require_length(student: Any, cache: Cache) -> None:
    """Raise ModelError if a cache has longer documents than a student takes."""
    limit, longest = most_tokens(student), int(cache.plan.per_document["doc_len"].max())
    if limit is not None and longest > limit:
        raise ModelError(
            f"the student takes {limit} tokens, the cache has documents of {longest}; choose a "
            f"student that takes more, or build a cache with --max-length {limit}"
        )


def _name_pad(config: Any, cache: Cache) -> None:
    """Let a student without a pad name one, now that no embedding is made with zeros in its place.

    It is the tokenizer's, which is saved beside the student, or else one of the student's own
    special tokens. One that documents end with would hide their end, and none is named then.
    """
    if pad_of(config) is not None:
        return
    plan = cache.plan
    own = [plan.config.tokenizer["pad_id"]] if _pads(cache) else _special_ids(config)
    starts, lens = plan.spans(plan.docs[:ENDS], "token")
    reader: Any = plan.columns["tokens"]
    ends = reader.read(starts + lens - 1, np.ones_like(lens))
    fit = (pad for pad in own if pad < config.vocab_size and pad not in ends)
    config.pad_token_id = next(fit, None)


def _pads(cache: Cache) -> bool:
    """Whether the tokenizer of a cache has a pad token: the id in its plan may be a guess."""
    name = "tokenizer/tokenizer_config.json"
    with tempfile.TemporaryDirectory() as folder:
        cache.extract(Path(folder), [name])
        record = json.loads((Path(folder) / Path(name).name).read_text("utf-8"))
    return record.get("pad_token") is not None


def _special_ids(config: Any) -> list[int]:
    """Ids that end and begin texts, as far as a configuration names a single one."""
    found = (getattr(config, name, None) for name in ("eos_token_id", "bos_token_id"))
    return [token for token in found if isinstance(token, int)]


def _from_checkpoint(cache: Cache, config: Any, source: str) -> Any:
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
    require_sizes(info, source)
    return student


def _take_generation(student: Any, cache: Cache) -> None:
    """Let a language model that starts anew begin, sample and stop as the teacher does."""
    name = "teacher/generation_config.json"
    if name in cache.files and student.can_generate():
        with tempfile.TemporaryDirectory() as folder:
            cache.extract(Path(folder), [name])
            student.generation_config = transformers.GenerationConfig.from_pretrained(folder)


def _set_classes(config: Any, kind: LabelKind, classes: list[str] | None, outputs: int) -> None:
    names = list(classes or [])
    names += [f"LABEL_{i}" for i in range(len(names), outputs)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = kind.problem_type


def teacher_config(cache: Cache) -> Any:
    """The configuration of a cache's teacher."""
    with tempfile.TemporaryDirectory() as folder:
        cache.extract(Path(folder), ["teacher/config.json"])
        return load_config(folder)


def _from_teacher(cache: Cache, config: Any, layers: tuple[int, ...]) -> Any:
    task = cache.plan.task
    student = auto_class(task).from_config(config, dtype=torch.float32)
    teacher = _teacher(cache)
    copy_blocks(teacher, student, layers)
    require_same_states(teacher, student, layers, task, _document(cache))
    return student


def _document(cache: Cache) -> Batch:
    """The longest document that takes no time to run; the shortest if all are long."""
    lengths = cache.plan.per_document["doc_len"][cache.plan.docs]
    short = np.where(lengths <= COMPARED_TOKENS, lengths, -lengths)
    return cache.batch(cache.plan.docs[[int(short.argmax())]], [])


def _teacher(cache: Cache) -> Any:
    """The teacher's model, float32 on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        return auto_class(cache.plan.task).from_pretrained(
            _teacher_folder(cache, Path(folder)), dtype=torch.float32, use_safetensors=True
        )


def _teacher_folder(cache: Cache, scratch: Path) -> str:
    """A folder with the teacher's weights: those kept in the cache, or where it was read from."""
    names = [name for name in cache.files if name.startswith("teacher/")]
    if any(name.endswith(".safetensors") for name in names):
        cache.extract(scratch, names)
        return str(scratch)
    source = cache.manifest["teacher"]["source"]
    _require_same_weights(cache, source)
    return str(source)


def _require_same_weights(cache: Cache, source: str) -> None:
    identity = cache.manifest["teacher"]
    way = "build the cache with --keep-teacher-weights, or choose another student"
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise ModelError(f"the teacher's folder {source} is gone: {way}")
    task = cache.plan.task
    found = load_teacher(source, task=task, device="cpu", dtype=identity["dtype"])
    if found.identity["weights_sha256"] != identity["weights_sha256"]:
        raise ModelError(f"the weights in {source} are no longer the cache's teacher: {way}")
    require_same_teacher(identity, found, source, way)


def _teacher_embeddings(cache: Cache) -> torch.Tensor:
    """The word embeddings of the teacher, [V, E]."""
    weight: torch.Tensor = _teacher(cache).get_input_embeddings().weight.detach()
    return weight


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
        lambda cache, config, spec: _from_checkpoint(cache, config, spec.checkpoint or ""),
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
            cache, config, spec.built or "", partial(_teacher_embeddings, cache)
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
