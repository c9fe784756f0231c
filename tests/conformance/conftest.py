"""One small cache a task of all the examples of SIGNALS that it gives, made once a session."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kdcache
from kdcache.errors import ConfigError
from kdcache.models import load_config
from kdcache.models.teacher import model_sizes
from kdcache.signals import ModelSizes, parse
from kdcache.store import Cache
from kdcache.tasks import TASKS
from tests.conformance.examples import EXAMPLES, Example

SIZES: dict[str, Any] = {"max_length": 24, "part_tokens": 128, "limit": 12, "seed": 6}
UNKNOWN = ["漢字 語"] * 40 + ["the module is a parser", "it returns the value of the object"]
"""Documents of unknown words, in which there is nothing to mask, and two with some of it."""


class Caches:
    """Caches of one plan a task, each built when it is first asked for, and remembered."""

    def __init__(self, folder: Path, teachers: dict[str, Path], corpora: dict[str, Path]) -> None:
        self.folder, self.teachers, self.corpora = folder, teachers, corpora
        self._made: dict[tuple[Any, ...], Cache] = {}
        self._plans: dict[tuple[str, bool], Path] = {}
        self.sizes: dict[str, ModelSizes] = {
            task: model_sizes(load_config(place), task) for task, place in teachers.items()
        }

    def plan(self, task: Any, *, unknown: bool = False) -> Path:
        """The plan of a task; with `unknown`, of words that no tokenizer knows."""
        if (task, unknown) not in self._plans:
            corpus, sizes = self.corpora[task], SIZES
            if unknown:
                corpus, sizes = self.folder / "unknown.txt", SIZES | {"limit": 42}
                corpus.write_text("\n".join(UNKNOWN), "utf-8")
            out = self.folder / f"{task}-{unknown}.plan"
            kdcache.plan(corpus, tokenizer=self.teachers[task], task=task, out=out, **sizes)
            self._plans[task, unknown] = out
        return self._plans[task, unknown]

    def given(self, task: Any, **options: object) -> list[Example]:
        """The examples that the task has."""
        found = []
        for example in EXAMPLES:
            try:
                text = example.called(**options).partition("=")[2]
                parse(text).check(TASKS[task], self.sizes[task])
                found.append(example)
            except ConfigError:
                continue
        return found

    def task_of(self, example: Example) -> Any:
        """The first task that has an example."""
        tasks = [task for task in self.teachers if example in self.given(task)]
        assert tasks, f"no task gives {example.text}"
        return tasks[0]

    def of(self, example: Example) -> Cache:
        """The cache that holds an example beside all others that its task has."""
        task = self.task_of(example)
        return self.build(task, [other.called() for other in self.given(task)])

    def build(self, task: Any, signals: Sequence[str], *, unknown: bool = False) -> Cache:
        """A cache of some signals of a task's plan."""
        key = (task, tuple(signals), unknown)
        if key not in self._made:
            self._made[key] = kdcache.build(
                str(self.plan(task, unknown=unknown)),
                teacher=self.teachers[task],
                task=task,
                out=self.folder / f"{len(self._made)}.zarr",
                signals=signals,
                batch_tokens=128,
            )
        return self._made[key]

    def stranger(self, task: Any) -> Path:
        """A teacher that differs from a task's in the lowest bit of one weight."""
        source = self.teachers[task]
        out = self.folder / f"{source.name}-stranger"
        if not out.exists():
            kind = transformers.AutoConfig.from_pretrained(source).architectures[0]
            model = getattr(transformers, kind).from_pretrained(source)
            weight = next(model.parameters()).data
            weight.view(-1)[5:6].view(torch.int32).bitwise_xor_(1)
            model.save_pretrained(out)
            for file in source.iterdir():
                if not (out / file.name).exists():
                    (out / file.name).write_bytes(file.read_bytes())
        return out


@pytest.fixture(scope="session")
def caches(
    tmp_path_factory: pytest.TempPathFactory,
    masked_lm: Path,
    causal_lm: Path,
    classifier: Path,
    prose_file: Path,
    corpus: Path,
) -> Caches:
    teachers: dict[str, Path] = {
        "masked-lm": masked_lm,
        "causal-lm": causal_lm,
        "text-classification": classifier,
    }
    corpora: dict[str, Path] = {
        "masked-lm": prose_file,
        "causal-lm": prose_file,
        "text-classification": corpus,
    }
    return Caches(tmp_path_factory.mktemp("conformance"), teachers, corpora)
