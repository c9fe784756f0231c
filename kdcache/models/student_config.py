"""The configuration of a student that is a module, and the file that keeps it."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import transformers
from torch import nn

from kdcache.errors import ModelError, did_you_mean, near
from kdcache.manifest import Json
from kdcache.students import STUDENTS

RECORD = "kdcache_student.json"
FORMAT = 1
RECORDED = (
    "student",
    "settings",
    "tap_widths",
    "architectures",
    "vocab_size",
    "pad_token_id",
    "is_decoder",
    "problem_type",
)
"""What the file holds of a configuration, beside the format and the names of the classes."""

UNRECORDED = ("trusted", "members", "heads")
MADE_HERE = {"projected": ("kdcache.models.projected", "Projected")}
"""Students that nobody asks for by name: what some losses leave, with the module they are in."""

Widths = dict[str, list[int]]
"""Width of each layer of a tap, by its name; of one where it has no layers."""


class StudentConfig(transformers.PretrainedConfig):
    """What is known of a student that is a module, as transformers knows its models.

    Attributes:
        student: its class: a name of STUDENTS, or the import path `package.module:Name`.
        settings: arguments of its constructor, JSON values; None: it does not tell them.
        tap_widths: of the taps that it gives beside its logits.
        members: configurations of the students, where several are trained as one.
        heads: names of those, where they are heads of one encoder.
    """

    model_type = "kdcache_student"
    members = cast(tuple[Any, ...], ())
    heads = cast(tuple[str, ...], ())
    trusted = False
    """Whether a class that is none of kdcache's may be imported: said by a person, never kept."""

    def __init__(
        self,
        student: str = "",
        settings: dict[str, Any] | None = None,
        tap_widths: Widths | None = None,
        vocab_size: int = 0,
        pad_token_id: int | None = None,
        is_decoder: bool = False,
        **more: Any,
    ) -> None:
        self.student, self.settings = student, settings
        self.tap_widths = tap_widths or {}
        self.vocab_size, self.is_decoder = vocab_size, is_decoder
        hidden = self.tap_widths.get("hidden", [])
        self.hidden_size, self.num_hidden_layers = [0, *hidden][-1], len(hidden) - 1
        super().__init__(**more)
        self.pad_token_id = pad_token_id

    def to_dict(self) -> dict[str, Any]:
        """All values but for what a person vouched for, and other configurations."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if name not in UNRECORDED}

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:  # type: ignore[override]  # no pushing
        """Write `kdcache_student.json` into a folder."""
        names: Any = self.id2label
        labels = [str(names[i]) for i in range(len(names))]
        record = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in RECORDED},
            "labels": labels,
        }
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (Path(save_directory) / RECORD).write_text(text, "utf-8")


def is_student(source: str | Path) -> bool:
    """Whether a folder holds a student that is a module."""
    return (Path(source) / RECORD).is_file()


def read_config(folder: Path, *, trusted: bool) -> StudentConfig:
    """The configuration in a folder that `is_student`; ModelError for a file that is none."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        _check(record)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder / RECORD} is no description of a student: {error}") from error
    labels = dict(enumerate(record["labels"]))
    values = {name: record[name] for name in RECORDED}
    config = StudentConfig(
        **values, id2label=labels, label2id={name: i for i, name in labels.items()}
    )
    config.name_or_path = str(folder)
    config.trusted = trusted
    return config


def _check(record: Json) -> None:
    if record["format"] != FORMAT:
        raise ValueError(f"its format is {record['format']!r}, and {FORMAT} is read here")
    kinds = {"student": str, "settings": dict | None, "tap_widths": dict, "labels": list}
    for name, kind in kinds.items():
        if not isinstance(record[name], kind):
            raise TypeError(f"{name} is {record[name]!r}")
    missing = [name for name in RECORDED if name not in record]
    if missing:
        raise KeyError(missing[0])


def is_foreign(config: Any) -> bool:
    """Whether a configuration is of a student whose class is none of kdcache's."""
    return isinstance(config, StudentConfig) and config.student not in {*STUDENTS, *MADE_HERE}


def name_of_class(kind: type) -> str:
    """What a folder calls a class: its name in STUDENTS, or where it is imported from."""
    ours = (name for name, known in STUDENTS.items() if known is kind)
    return next(ours, f"{kind.__module__}:{kind.__qualname__}")


def unloadable(config: Any) -> str | None:
    """Why a student's folder alone will not give it back, in words; None: it will."""
    if not isinstance(config, StudentConfig):
        return None
    if config.settings is None:
        return f"{config.student} tells no `settings` to make it with"
    return (
        f"{config.student} is defined within a function" if "<locals>" in config.student else None
    )


def make_student(config: StudentConfig) -> nn.Module:
    """A student of the class and settings of a configuration, with new weights.

    Raises ModelError for a class that is not trusted or not there, and for settings it refuses.
    """
    where = config.name_or_path or config.student
    if config.settings is None:
        raise ModelError(
            f"{where} holds the weights of a {config.student}, whose class tells no `settings` to "
            "make it with: load them into a module of your own, or train a class that has settings"
        )
    kind = STUDENTS.get(config.student) or _made_here(config) or _imported(config, where)
    try:
        made: nn.Module = kind(**config.settings)
    except Exception as error:  # whatever code of a user's may do
        text = " ".join(str(error).split())
        raise ModelError(
            f"{where}: {config.student} cannot be made with its settings {config.settings} "
            f"({type(error).__name__}: {text})"
        ) from error
    return made


def require_trusted(config: Any) -> None:
    """Raise ModelError for a student whose class is none of kdcache's and that nobody trusts."""
    if is_foreign(config) and not config.trusted:
        raise ModelError(
            f"{config.name_or_path or config.student} is a student of the class {config.student}, "
            "which is no code of kdcache's: say --trust-remote-code (trust_remote_code=True) to "
            "import and run it"
        )


def _made_here(config: StudentConfig) -> Any:
    """A class of kdcache's that training makes; None for others."""
    place = MADE_HERE.get(config.student)
    return None if place is None else getattr(import_module(place[0]), place[1])


def _imported(config: StudentConfig, where: str) -> Any:
    module, _, name = config.student.partition(":")
    if not name:
        raise ModelError(
            f"{where}: there is no student {config.student!r}"
            f"{did_you_mean(near(config.student, STUDENTS))}"
        )
    require_trusted(config)
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # importing runs the module
        raise ModelError(
            f"{where}: cannot import {config.student} ({type(error).__name__}: {error}): put it "
            "where Python finds it (PYTHONPATH)"
        ) from error
