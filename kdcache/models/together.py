"""Students that are trained together, as one model, and where each of them goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_model
from torch import nn

from kdcache.errors import ConfigError
from kdcache.models.module_student import WEIGHTS
from kdcache.models.recording import heads_of, members_of
from kdcache.models.student_config import StudentConfig, Widths


class TogetherModel(transformers.PreTrainedModel):
    """Several students, as a Trainer takes a model; `run` runs each of `members`."""

    config_class = StudentConfig

    def __init__(self, config: StudentConfig, members: Sequence[Any]) -> None:
        super().__init__(config)
        self.members = nn.ModuleList(members)

    def save_pretrained(  # type: ignore[override]  # what a Trainer asks for
        self, save_directory: str | Path, *, is_main_process: bool = True, **_: Any
    ) -> None:
        """Write the weights of all, for a checkpoint: students are saved by themselves."""
        if is_main_process:
            save_all(self, Path(save_directory))


def save_all(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Write the weights of a model of several into a folder, those that are shared once."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / WEIGHTS), metadata={"format": "pt"})


def together_config(name: str, members: Sequence[Any], *, causal: bool) -> StudentConfig:
    """The configuration of students with those of `members`: they give the taps that all give."""
    config = StudentConfig(
        student=name,
        settings={},
        tap_widths=_shared(map(_widths, members)),
        architectures=members[0].architectures,
        vocab_size=min(one.get_text_config().vocab_size for one in members),
        is_decoder=causal,
    )
    config.members = tuple(members)
    return config


def _widths(config: Any) -> Widths:
    """What a student declares; of a model of transformers' its hidden states and embeddings."""
    declared: Widths | None = getattr(config, "tap_widths", None)
    if declared is not None:
        return declared
    text = config.get_text_config()
    hidden = [int(text.hidden_size)] * (int(text.num_hidden_layers) + 1)
    return {"hidden": hidden, "embeddings": hidden[:1]}


def _shared(found: Iterable[Widths]) -> Widths:
    first, *others = found
    return {
        name: widths
        for name, widths in first.items()
        if all(other.get(name) == widths for other in others)
    }


def require_one(config: Any, ranks: int, **scored: Any) -> None:
    """Raise ConfigError for what serves one student only, if `config` is of several.

    `scored` are the documents that a student would be scored on, by the option that names them.
    """
    members = () if getattr(config, "heads", ()) else getattr(config, "members", ())
    named = [f"--{option.replace('_', '-')}" for option, given in scored.items() if given]
    if members and named:
        raise ConfigError(
            f"{named[0]} scores one student, and {len(members)} are trained together: leave it "
            "out, and score each when they are done (kdcache evaluate OUT/student-1 FILE)"
        )
    if members and ranks > 1:
        raise ConfigError(
            f"{len(members)} students are trained together in one process; there are {ranks}"
        )


def homes(folder: Path, student: Any) -> list[tuple[Path, Any]]:
    """Every student with the folder it is saved to: `folder` itself, if there is but one."""
    if names := getattr(student.config, "heads", ()):
        return [(folder / name, one) for name, one in zip(names, heads_of(student), strict=True)]
    members = members_of(student)
    if len(members) == 1:
        return [(folder, student)]
    return [(folder / f"student-{number}", one) for number, one in enumerate(members, 1)]
