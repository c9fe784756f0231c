"""The [student] table of a recipe: where the student comes from, and what is said of it beside."""

from __future__ import annotations

from typing import Any

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json
from kdcache.models.sharing import SHARED
from kdcache.models.student import WAYS
from kdcache.training.vocabulary import vocabulary_of

OPTIONS = (
    "same_tokenizer",
    "shared",
    "tokenizer",
    "vocabulary",
)  # what is said of a student beside where it comes from
KEPT = ("shared", "tokenizer", "vocabulary")  # those that stay where another student is named
STUDENT = (*WAYS, *OPTIONS)


def student_table(values: Json) -> Json:
    """A [student] table as it is kept; ConfigError for a field or layers that make no sense."""
    for key in values:
        one_of("field of student", key, STUDENT)
    same = values.get("same_tokenizer", False)
    if not isinstance(same, bool):
        raise ConfigError(f"student.same_tokenizer must be true or false; got {same!r}")
    _check_tokenizer(values)
    if values.get("vocabulary") not in (None, ""):
        values["vocabulary"] = vocabulary_of(values["vocabulary"])
    if values.get("shared"):
        one_of("way to share parameters (student.shared)", values["shared"], SHARED)
    several = values.get("together")
    if several is not None and not (
        isinstance(several, list) and len(several) > 1 and all(type(s) is str for s in several)
    ):
        raise ConfigError(
            'student.together is a list of two students or more, such as ["bilstm", "static"]; '
            f"got {several!r}"
        )
    if values.get("init_from_teacher") is not None:
        values["init_from_teacher"] = _layers(values["init_from_teacher"])
    return values


def _check_tokenizer(values: Json) -> None:
    """ConfigError for a tokenizer that is none, or that a student of these tokens cannot have."""
    tokenizer = values.get("tokenizer", "")
    if not isinstance(tokenizer, str):
        raise ConfigError(f"student.tokenizer is a folder or hub name; got {tokenizer!r}")
    if tokenizer and values.get("vocabulary") not in (None, ""):
        raise ConfigError(
            "student.vocabulary keeps tokens of the teacher's, and student.tokenizer has "
            "others: leave one of the two out"
        )
    embeddings = "embeddings=teacher" in str(values.get("built", ""))
    if tokenizer and (embeddings or values.get("init_from_teacher") is not None):
        raise ConfigError(
            "a student that starts from the teacher's embeddings has its tokens: choose a "
            "checkpoint or a configuration (--student, --config), or leave student.tokenizer out"
        )


def _layers(layers: Any) -> list[int]:
    """Layers of the teacher, given as a list or as 2-4-6."""
    parts = layers.split("-") if isinstance(layers, str) else layers
    try:
        return [int(layer) for layer in parts]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"student.init_from_teacher is a list of teacher layers such as [2, 4, 6]; "
            f"got {layers!r}"
        ) from error
