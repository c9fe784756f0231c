"""How a stage of `gpu_session.py` runs: item after item, until its seconds are over."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "cli")]

import torch  # noqa: E402  # after the path that finds our own packages

from kdcache.bench.kernels_check import reason  # noqa: E402
from kdcache.bench.kernels_inputs import Size  # noqa: E402
from kdcache.bench.report import new_report, save_report  # noqa: E402

Json = dict[str, Any]

TOLD, BAD = "left_out", ("wrong", "failed")
AGAIN = {TOLD, "absent", *BAD}
"""Answers after which an item is asked again."""
WALK = Size(rows=4, vocab=96, k=64, hidden=96)
"""No size is larger than this without a GPU, where all is gone through and nothing is learnt."""


class Stage(NamedTuple):
    """What to do, with each of which items, for how many seconds at most; how, and where."""

    run: Callable[..., Json]
    items: Callable[[], Iterable[tuple[Any, ...]]]
    seconds: float
    processes: int = 1
    gpu: bool = False
    """Whether nothing of it can run without one."""
    every: int = 1
    """Without one, every so many-th item is gone through."""


class Session:
    """Where stages run, and what they write: a file each."""

    def __init__(self, out: Path, device: str) -> None:
        self.out, self.device = out, torch.device(device)
        self.on_gpu = self.device.type == "cuda"

    def size(self, rows: int, vocab: int = 30522, hidden: int = 768) -> Size:
        """A size; without a GPU a tiny one."""
        if not self.on_gpu:
            rows, vocab, hidden = min(rows, WALK.rows), min(vocab, WALK.vocab), WALK.hidden
        return Size(rows=rows, vocab=vocab, k=min(64, vocab), hidden=hidden)

    def repeats(self, number: int) -> int:
        """How often something is repeated; without a GPU hardly."""
        return number if self.on_gpu else min(number, 2)

    def run(
        self, name: str, stage: Stage, seconds: float | None = None, shard: tuple[int, int] = (0, 1)
    ) -> bool:
        """Run the items of a stage that its file does not answer yet; was everything right?

        Those for which no time is left are told as such. Of several processes, each runs its
        share, `shard`: its number and how many there are, and writes a file of its own.
        """
        first, step = shard
        path = self.out / (f"{name}.json" if step == 1 else f"{name}.{first}.json")
        items = {" ".join(map(str, item)): item for item in list(stage.items())[first::step]}
        found = {label: answer for label, answer in self._answered(name).items() if label in items}
        report = new_report(name)  # looks up versions, which takes a while
        begun, limit = time.monotonic(), stage.seconds if seconds is None else seconds
        for number, (label, item) in enumerate(items.items()):
            took = time.monotonic() - begun
            if label not in found:
                found[label] = self._left_out(stage, number, took > limit) or self._one(stage, item)
                if set(BAD) & set(found[label]):
                    print(f"{name}: {label}: {found[label]}", flush=True)
            rows = [{"item": each, **found[each]} for each in items if each in found]
            save_report(path, {**report, "seconds": took, "items": rows})
        kinds = {kind: sum(kind in one for one in found.values()) for kind in (TOLD, *BAD)}
        print(f"{name}: {len(items)} items, {time.monotonic() - begun:.0f} s, {kinds}", flush=True)
        return not any(kinds[bad] for bad in BAD)

    def _answered(self, name: str) -> dict[str, Json]:
        """What an earlier run found out, by item."""
        path = self.out / f"{name}.json"
        items = json.loads(path.read_text("utf-8"))["items"] if path.exists() else []
        named = {item.pop("item"): item for item in items}
        return {label: item for label, item in named.items() if not AGAIN & set(item)}

    def _left_out(self, stage: Stage, number: int, late: bool) -> Json | None:
        if not self.on_gpu and (stage.gpu or number % stage.every):
            return {TOLD: "needs a GPU" if stage.gpu else "much like others, without a GPU"}
        return {TOLD: "out of time"} if late else None

    def _one(self, stage: Stage, item: tuple[Any, ...]) -> Json:
        try:
            return stage.run(self, *item)
        except Exception as error:  # recorded, and the next one runs
            return {"failed": reason(error)}
