"""One comparison of training from labels with training from a cache, teacher and students fair.

The teacher and both students see the same labels; the distilled student also sees what the teacher
says of the sentences that have none.
"""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcache.builder import build
from kdcache.demo.sentences import Sentence, unlabelled, write
from kdcache.demo_teacher import encoder_folder
from kdcache.errors import ConfigError
from kdcache.evaluator import evaluate
from kdcache.manifest import Json
from kdcache.progress import Progress
from kdcache.store.files import require_writable
from kdcache.teaching import teach
from kdcache.trainer import train

MAX_LENGTH = 64
Z95 = 1.959964
CACHE = "cache.zarr"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a comparison.

    Attributes:
        labels: how many training sentences keep their label.
        student_layers: teacher layers the student copies.
        hard_epochs: passes over the labelled sentences.
        soft_epochs: passes over all training sentences.
    """

    seed: int = 0
    labels: int = 800
    teacher_epochs: int = 3
    teacher_learning_rate: float = 1.5e-4
    student_layers: tuple[int, ...] = (1, 2)
    learning_rate: float = 5e-4
    hard_epochs: int = 9
    soft_epochs: int = 2
    temperature: float = 2.0


def compare(
    out: Path,
    train_set: Sequence[Sentence],
    test_set: Sequence[Sentence],
    settings: Settings,
    progress: Progress,
) -> Json:
    """Fit a teacher, build its cache, train both students and score all three on `test_set`.

    What an earlier call with the same settings finished in `out` is kept. Returns "models" (scores
    by name), "gain" with its 95% interval over the test sentences, and "phases" with seconds and
    bytes.

    Raises ConfigError if `out` was made with other settings.
    """
    run = _Run(out, settings, progress)
    known = unlabelled(train_set, settings.labels, settings.seed)
    run.write("train.csv", known)
    run.write("test.csv", test_set)
    run.phase("teacher", "teach the teacher", run.teach)
    run.phase(CACHE, "run the teacher once", run.build)
    run.phase("labels", "train a student on labels", lambda folder: run.train(folder, "finetune"))
    run.phase("distilled", "train a student on the cache", lambda folder: run.train(folder, "kd"))
    run.phase("scores", "score all three", run.score)
    return run.state


class _Run:
    """The folder of a comparison: each phase makes one thing in it, once."""

    def __init__(self, out: Path, settings: Settings, progress: Progress) -> None:
        self.out, self.settings, self.progress = out, settings, progress
        self.note = out / "comparison.json"
        wanted = json.loads(json.dumps(asdict(settings)))
        state = json.loads(self.note.read_text()) if self.note.is_file() else None
        require_writable(out)
        if state is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} is not empty, or no folder; choose another with --out")
        self.state: Json = state or {"settings": wanted, "phases": {}}
        if self.state["settings"] != wanted:
            raise ConfigError(f"{out} was made with other settings; choose another with --out")
        out.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, rows: Sequence[Sentence]) -> None:
        """Write a corpus of the comparison."""
        write(self.out / name, rows)
        self._save()

    def phase(self, name: str, what: str, work: Callable[[Path], None]) -> None:
        """Do one phase unless it is done; note its time and what it takes on disk."""
        if name in self.state["phases"]:
            self.progress.say(f"{what}: kept from the earlier run")
            return
        folder = self.out / name
        if name != CACHE:
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted phase left
        started = time.perf_counter()
        work(folder)
        files = [p for p in folder.rglob("*") if p.is_file()]
        self.state["phases"][name] = {
            "what": what,
            "seconds": time.perf_counter() - started,
            "bytes": sum(p.stat().st_size for p in files),
        }
        self._save()

    def _save(self) -> None:
        self.note.write_text(json.dumps(self.state, indent=1))

    def teach(self, folder: Path) -> None:
        """Teach the encoder the labels that are kept."""
        teach(
            encoder_folder(),
            self.out / "train.csv",
            out=folder,
            seed=self.settings.seed,
            epochs=self.settings.teacher_epochs,
            learning_rates=self.settings.teacher_learning_rate,
            max_length=MAX_LENGTH,
            progress=self.progress,
        )

    def build(self, folder: Path) -> None:
        """Run the teacher over all training sentences."""
        build(
            self.out / "train.csv",
            teacher=self.out / "teacher",
            task="text-classification",
            out=folder,
            max_length=MAX_LENGTH,
            progress=self.progress,
        )

    def train(self, folder: Path, recipe: str) -> None:
        """Train a student by a shipped recipe."""
        s = self.settings
        epochs = s.hard_epochs if recipe == "finetune" else s.soft_epochs
        overrides = [
            f"training.num_train_epochs={epochs}",
            f"training.learning_rate={s.learning_rate}",
            f"training.seed={s.seed}",
            "training.save_strategy=no",
        ]
        if recipe == "kd":
            overrides.append(f"losses.kl.temperature={s.temperature}")
        train(
            self.out / CACHE,
            recipe=recipe,
            out=folder,
            init_from_teacher=s.student_layers,
            overrides=overrides,
            progress=self.progress,
        )

    def score(self, folder: Path) -> None:
        """Score the teacher and both students, and compare the students test by test."""
        folder.mkdir(exist_ok=True)
        models = {}
        for name in ("teacher", "labels", "distilled"):
            models[name] = evaluate(
                self.out / name,
                self.out / "test.csv",
                predictions=folder / f"{name}.csv",
                max_length=MAX_LENGTH,
                progress=self.progress,
            )
        self.state["models"] = models
        self.state["gain"] = paired_gain(folder / "labels.csv", folder / "distilled.csv")


def paired_gain(before: Path, after: Path) -> Json:
    """Difference in accuracy of two prediction files over the same documents, with its interval.

    The interval is mean ± 1.96 standard errors of the paired differences; it speaks of other test
    documents, not of other seeds.
    """
    difference = _correct(after).astype(float) - _correct(before).astype(float)
    mean = float(difference.mean())
    half = Z95 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return {"accuracy": mean, "interval": [mean - half, mean + half], "documents": len(difference)}


def _correct(path: Path) -> npt.NDArray[np.bool_]:
    with path.open(encoding="utf-8") as file:
        return np.array([row["label"] == row["prediction"] for row in csv.DictReader(file)])
