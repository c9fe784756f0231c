"""Students of kdcache's own, made by name and settings: `bilstm:hidden=128,layers=2`."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdcache.errors import ConfigError, ModelError, one_of
from kdcache.models.declared import adapted, module_config
from kdcache.records import from_texts, settings_of
from kdcache.signals.base import options
from kdcache.students import STUDENTS

if TYPE_CHECKING:
    from kdcache.store import Cache

FROM_CACHE = ("vocabulary", "outputs")
EMBEDDINGS = "embeddings"
TEACHER = "teacher"
WIDTH = "embedding"  # the setting that says how wide they are


def is_built(source: str) -> bool:
    """Whether a text names a student of the table: `NAME` or `NAME:setting=value`."""
    return source.partition(":")[0] in STUDENTS


def built_config(cache: Cache, source: str) -> Any:
    """The configuration of such a student; nothing is drawn for that.

    Raises ConfigError for settings it does not have, and for a task it does not serve.
    """
    with torch.device("meta"):
        return module_config(cache, _made(cache, source)[0])


def built(cache: Cache, config: Any, source: str, embeddings: typing.Callable[[], Any]) -> Any:
    """Such a student with new weights; with `embeddings=teacher`, with the teacher's for its own.

    `embeddings` gives those of the teacher, [V, E].
    """
    module, from_teacher = _made(cache, source)
    if from_teacher:
        _copy(module, embeddings(), source)
    return adapted(module, config)


def _made(cache: Cache, source: str) -> tuple[nn.Module, bool]:
    """A student, and whether it is to get the teacher's embeddings."""
    name, _, text = source.partition(":")
    kind = STUDENTS[one_of("student", name, STUDENTS)]
    if cache.plan.task.rows != "document":
        raise ConfigError(
            f"--student {name} classifies documents and the cache is for {cache.plan.task}: "
            "choose a checkpoint (--student FOLDER), or teacher layers (--init-from-teacher)"
        )
    settings = _settings(kind, name)
    texts = options(text, [EMBEDDINGS, *settings_of(settings)], name)
    from_teacher = texts.pop(EMBEDDINGS, None)
    if from_teacher not in (None, TEACHER):
        raise ConfigError(
            f"{name}: embeddings={TEACHER} starts from the teacher's, and new ones are drawn where "
            f"it is left out; got {from_teacher!r}"
        )
    if from_teacher and WIDTH in settings_of(settings):
        texts.setdefault(WIDTH, str(cache.shape.hidden))
    vocabulary = int(cache.plan.config.tokenizer["vocab_size"])
    values = dataclasses.asdict(from_texts(settings, texts, name))
    made = kind(vocabulary=vocabulary, outputs=cache.shape.outputs, **values)
    return made, from_teacher is not None


def _settings(kind: type[nn.Module], name: str) -> type[Any]:
    """The settings that a student may be given, as its constructor declares them."""
    hints = typing.get_type_hints(kind.__init__)
    fields = [
        (key, hints[key], dataclasses.field(default=given.default))
        for key, given in inspect.signature(kind).parameters.items()
        if key not in FROM_CACHE
    ]
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)


def _copy(module: nn.Module, teacher: torch.Tensor, source: str) -> None:
    """Let a student begin with the teacher's embeddings of the tokens it has."""
    own: Any = getattr(module, EMBEDDINGS)
    rows, width = own.weight.shape
    if teacher.shape[1] != width or len(teacher) < rows:
        raise ModelError(
            f"--student {source} starts from the teacher's embeddings, which are "
            f"{list(teacher.shape)} and the student's {[rows, width]}: say "
            f"embedding={teacher.shape[1]}, or leave embeddings={TEACHER} out"
        )
    with torch.no_grad():
        own.weight.copy_(teacher[:rows])
