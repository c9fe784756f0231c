"""One small cache of every example of SIGNALS, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kdcache
from kdcache.errors import ConfigError
from kdcache.store import Cache
from tests.conformance.examples import Example

SIZES: dict[str, Any] = {"max_length": 24, "part_tokens": 256, "limit": 12, "seed": 6}
UNKNOWN = ["漢字 語"] * 40 + ["the module is a parser", "it returns the value of the object"]
"""Documents of unknown words, in which there is nothing to mask, and two with some of it."""


class Caches:
    """Caches of one plan a task, each built when it is first asked for, and remembered."""

    def __init__(self, folder: Path, teachers: dict[str, Path], corpora: dict[str, Path]) -> None:
        self.folder, self.teachers, self.corpora = folder, teachers, corpora
        self._made: dict[tuple[str, bool], Cache] = {}

    def plan(self, task: Any, *, unknown: bool = False) -> Path:
        """The plan of a task; with `unknown`, of words that no tokenizer knows."""
        out = self.folder / f"{task}-{unknown}.plan"
        corpus, sizes = self.corpora[task], SIZES
        if unknown:
            corpus, sizes = self.folder / "unknown.txt", SIZES | {"limit": 42, "part_tokens": 128}
            corpus.write_text("\n".join(UNKNOWN), "utf-8")
        if not out.exists():
            kdcache.plan(corpus, tokenizer=self.teachers[task], task=task, out=out, **sizes)
        return out

    def cache(self, text: str, *, unknown: bool = False) -> Cache:
        """The cache of a signal, for the first task that has it."""
        if (text, unknown) not in self._made:
            self._made[text, unknown] = self._build(text, unknown)
        return self._made[text, unknown]

    def teacher_of(self, cache: Cache) -> Path:
        """The teacher that a cache was made with."""
        return self.teachers[cache.plan.config.task]

    def _build(self, text: str, unknown: bool) -> Cache:
        refused = []
        for task in ["masked-lm"] if unknown else list(self.teachers):
            try:
                return kdcache.build(
                    str(self.plan(task, unknown=unknown)),
                    teacher=self.teachers[task],
                    task=task,  # type: ignore[arg-type]  # a task by its name
                    out=self.folder / f"{len(self._made)}.zarr",
                    signals=[text],
                    batch_tokens=128,
                )
            except ConfigError as error:
                refused.append(f"{task}: {error}")
        pytest.fail(f"no task gives {text}: {refused}")


@pytest.fixture(scope="session")
def caches(
    tmp_path_factory: pytest.TempPathFactory,
    masked_lm: Path,
    causal_lm: Path,
    classifier: Path,
    prose_file: Path,
    corpus: Path,
) -> Caches:
    teachers = {"masked-lm": masked_lm, "causal-lm": causal_lm, "text-classification": classifier}
    corpora = {"masked-lm": prose_file, "causal-lm": prose_file, "text-classification": corpus}
    return Caches(tmp_path_factory.mktemp("conformance"), teachers, corpora)


@pytest.fixture
def cache_of(caches: Caches) -> Callable[[Example], Cache]:
    """The cache of an example."""
    return lambda example: caches.cache(example.text)


@pytest.fixture(scope="session")
def strangers(caches: Caches) -> Callable[[Cache], Path]:
    """A teacher that differs from a cache's in the lowest bit of one weight."""

    def make(cache: Cache) -> Path:
        source = caches.teacher_of(cache)
        out = caches.folder / f"{source.name}-stranger"
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

    return make
