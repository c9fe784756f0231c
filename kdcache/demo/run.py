"""The demo: a teacher from a few labels, one cache, several students, and what they are worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdcache.building.builder import build
from kdcache.demo.encoder import encoder_folder
from kdcache.demo.ending import TEXTS, pipeline_call
from kdcache.demo.loop import forward_seconds
from kdcache.demo.report import (
    CACHE,
    FP32,
    LABELS,
    LOOP,
    PREDICTIONS,
    SHIPPED,
    TEACHER,
    named,
    report,
    student,
)
from kdcache.demo.scores import predict
from kdcache.demo.sentences import Corpus, write
from kdcache.demo.settings import Settings, read_corpus
from kdcache.demo.shippers import Job, ship_all
from kdcache.demo.steps import Steps, afresh
from kdcache.manifest import Json
from kdcache.models import load_config, load_teacher
from kdcache.progress import Progress, Shown, shown
from kdcache.shipping.extra import require_extra
from kdcache.store import open_cache
from kdcache.store.io.durable_writes import require_writable
from kdcache.teaching import teach
from kdcache.training.train import train

TASK: Any = "text-classification"
TRAIN, LABELLED, DEV = "train.csv", "labelled.csv", "dev.csv"


def run(
    out: str | Path,
    *,
    corpus: str = "reviews",
    seed: int = 0,
    progress: Shown = None,
    settings: Settings | None = None,
    archive: Path | None = None,
) -> Json:
    """Run the demo in the folder `out`; what an earlier run finished there is kept.

    Args:
        corpus: "reviews", fetched unless `archive` names them, or "docstrings", offline.
        seed: of the split, the labels that are kept, and all training.
        settings: those of the demo, in place of `corpus` and `seed`.

    Returns what `report` does, "encoder", and under "pipeline" a call of transformers' own and its
    output.

    Raises MissingExtraError if a package of the extra `demo` is not installed, CorpusError if the
    corpus cannot be had, ConfigError if `out` holds something else.
    """
    progress, out = shown(progress), Path(out)
    chosen = settings or Settings(corpus=corpus, seed=seed)
    require_writable(out)
    require_extra()
    encoder = chosen.encoder or str(encoder_folder())
    sentences = read_corpus(chosen, archive)
    demo = _Demo(Steps(out, asdict(chosen), progress), chosen, sentences, encoder, progress)
    return demo.run()


@dataclass(frozen=True)
class _Demo:
    steps: Steps
    settings: Settings
    corpus: Corpus
    encoder: str
    progress: Progress

    def run(self) -> Json:
        self._write_corpus()
        self.steps.do(TEACHER, "the teacher, from the labels", self.teach)
        self.steps.do(CACHE, "the cache: the teacher runs once", self.build)
        count = len(self.settings.students)
        for number, layers in enumerate(self.settings.students, 1):
            what = f"student {number} of {count}, from the cache: {named(layers)}"
            self.steps.do(student(layers), what, partial(self.train, layers=layers))
        first = self.settings.baseline
        what = f"the same student from the labels alone: {named(first)}"
        self.steps.do(LABELS, what, partial(self.train, layers=first, labels=True))
        self.steps.do(LOOP, "the teacher in the loop, a few steps of it timed", self.time)
        self.steps.do(SHIPPED, "every model as ONNX, in int8", self.ship)
        self.steps.do(PREDICTIONS, "every model timed, and scored once", self.score)
        found = report(self.steps, self.settings, self.corpus)
        call = pipeline_call(Path(found["student"]), TEXTS[self.corpus.name])
        return {**found, "encoder": self.encoder, "pipeline": call}

    def _write_corpus(self) -> None:
        out, corpus = self.steps.out, self.corpus
        labelled = [s for s in corpus.train if s.label]
        files = {TRAIN: corpus.train, LABELLED: labelled, DEV: corpus.dev}
        for name, sentences in files.items():
            write(out / name, sentences)

    def teach(self, folder: Path) -> Json:
        """Fit the encoder to the labelled sentences; the best epoch on dev is kept."""
        teach(
            self.encoder,
            self.steps.out / LABELLED,
            out=afresh(folder),
            dev=self.steps.out / DEV,
            epochs=self.settings.teacher_epochs,
            learning_rates=self.settings.teacher_rate,
            max_length=self.settings.max_length,
            seed=self.settings.seed,
            progress=self.progress,
        )
        return {"layers": load_config(folder).num_hidden_layers}

    def build(self, folder: Path) -> Json:
        """Run the teacher over all sentences but those to score on.

        The cache tells what the teacher scores on the dev sentences, and students are not trained
        on them. A build that was stopped goes on.
        """
        layers = "-".join(map(str, self.settings.layers))
        build(
            [self.steps.out / TRAIN, self.steps.out / DEV],
            teacher=self.steps.out / TEACHER,
            task=TASK,
            out=folder,
            signals=["logits:dense", f"hidden:layers={layers},positions=all,dtype=int8"],
            max_length=self.settings.max_length,
            progress=self.progress,
        )
        return {}

    def train(self, folder: Path, layers: tuple[int, ...], labels: bool = False) -> Json:
        """Train a student from the cache or from labels alone; the best epoch on dev is kept."""
        chosen = self.settings
        result = train(
            self.steps.out / CACHE,
            recipe="finetune" if labels else "hidden",
            out=afresh(folder),
            init_from_teacher=layers,
            dev=self.steps.out / DEV,
            epochs=None if labels else chosen.epochs,
            lr=chosen.rate,
            batch_size=chosen.batch,
            seed=chosen.seed,
            overrides=[f"training.max_steps={chosen.steps}"] if labels else [],
            progress=self.progress,
        )
        return {
            name: result.metrics[name] for name in ("steps", "step_seconds_median", "parameters")
        }

    def time(self, folder: Path) -> Json:
        """Seconds of the teacher's forward over a batch."""
        place, chosen = self.steps.out, self.settings
        seconds = forward_seconds(
            load_teacher(place / TEACHER, task=TASK).model,
            open_cache(place / CACHE),
            batch=chosen.batch,
            seed=chosen.seed,
            hidden=True,
            progress=self.progress,
        )
        return {"teacher_step_seconds": seconds}

    def ship(self, folder: Path) -> Json:
        """Ship every model in int8, the teacher in fp32 too; returns their bytes."""
        afresh(folder).mkdir()
        jobs = [
            Job(self.steps.out / name, folder / name, folder / FP32 if name == TEACHER else None)
            for name in self.models()
            if name != FP32
        ]
        return {"models": ship_all(jobs, self.progress)}

    def models(self) -> list[str]:
        """What is shipped, the teacher first."""
        return [FP32, TEACHER, *(student(layers) for layers in self.settings.students), LABELS]

    def score(self, folder: Path) -> Json:
        """Let every shipped model predict each test sentence once; returns ms of a call."""
        afresh(folder).mkdir()
        shipped, tests = self.steps.out / SHIPPED, self.corpus.tests
        return {
            "models": {
                name: predict(shipped / name, tests, folder / f"{name}.csv", self.progress)
                for name in self.models()
            }
        }
