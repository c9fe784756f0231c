"""The folder of a teacher: what an unfinished run keeps there, and the model it ends as."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model

from kdcache.building.training_note import TAUGHT
from kdcache.errors import ConfigError, DamageError
from kdcache.manifest import Json, require_same
from kdcache.models import Tokenizer
from kdcache.models.teacher import most_tokens
from kdcache.models.token_map import token_map
from kdcache.models.tokenizer import serve_with
from kdcache.plans import Plan
from kdcache.store.io.durable_writes import occupied, require_writable
from kdcache.training.lock import require_free
from kdcache.training.run_folder import CHECKPOINTS, METRICS, write_json

RUN = "run.json"
START = "start.safetensors"


def check_folder(folder: Path) -> None:
    """Raise ConfigError if the folder holds something that teaching would overwrite."""
    require_free(folder, folder / CHECKPOINTS)
    if (folder / METRICS).exists():
        raise ConfigError(
            f"{folder} already holds a trained model; choose another folder (--out), or remove it"
        )
    if occupied(folder) and not (folder / CHECKPOINTS / RUN).is_file() and not _bare(folder):
        raise ConfigError(f"{folder} exists and is not an empty folder; choose another (--out)")
    require_writable(folder)


def _bare(folder: Path) -> bool:
    """Whether it holds what a run leaves that was stopped before it had written its record."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    return names == {CHECKPOINTS} and not any((folder / CHECKPOINTS).glob("checkpoint-*"))


class Run:
    """What is finished of a run, in a record beside the weights it names.

    Attributes:
        state: "settings", and "start" and "points" as far as they are finished.
    """

    def __init__(self, folder: Path, settings: Json) -> None:
        self.folder, self.work = folder, folder / CHECKPOINTS
        record = self.work / RUN
        self.state: Json = {"settings": settings, "start": None, "points": []}
        if record.is_file():
            self.state = _read(record)
            require_same(self.state["settings"], json.loads(json.dumps(settings)), str(folder))

    @property
    def start(self) -> Json | None:
        """The start, once it is fitted."""
        start: Json | None = self.state["start"]
        return start

    @property
    def finished(self) -> list[Json]:
        """The points of the grid that are done."""
        points: list[Json] = self.state["points"]
        return points

    def keep_start(self, model: Any, start: Json) -> None:
        """Note the start, weights first."""
        save_model(model, str(self.work / START))
        self.state["start"] = start
        self._save()

    def load(self, model: Any, name: str = START) -> None:
        """Put weights that were kept into a model."""
        load_model(model, self.work / name)

    def keep_point(self, model: Any, point: Json, *, best: bool) -> None:
        """Note a point of the grid; of the weights of all of them only the `best` stay."""
        name = f"point-{len(self.finished) + 1}.safetensors"
        if best:
            save_model(model, str(self.work / name))
        self.finished.append(point | {"weights": name if best else None})
        self._save()
        for path in self.work.glob("point-*.safetensors"):
            if best and path.name != name:
                path.unlink()

    def _save(self) -> None:
        scratch = self.work / f"{RUN}.new"
        write_json(scratch, self.state)
        os.replace(scratch, self.work / RUN)


def _read(record: Path) -> Json:
    try:
        return dict(json.loads(record.read_text("utf-8")))
    except ValueError as error:
        raise DamageError(
            f"{record} is damaged: {error}; remove its folder, or choose another with --out"
        ) from error


def save_teacher(folder: Path, model: Any, tokenizer: Tokenizer, plan: Plan) -> None:
    """Write a model and its tokenizer as any good model folder has them, and a note of its plan."""
    model.eval().cpu().save_pretrained(folder)
    for name, content in tokenizer.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    limit, planned = most_tokens(model), plan.config.max_length
    length = planned if limit is None else min(planned, limit)
    serve_with(folder, length=length, pad_id=model.config.get_text_config().pad_token_id)
    note = {"plan": plan.sha256, "plan_config": plan.config.to_json()}
    write_json(folder / TAUGHT, {**note, "vocabulary": token_map(tokenizer.plain).sha256})
