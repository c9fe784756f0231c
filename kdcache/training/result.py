"""What a run comes to: the student's folder, and figures of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from kdcache.evaluation.score_tables import called, headline, score_cell, teachers_score
from kdcache.manifest import Json
from kdcache.memory import peak_rss_bytes
from kdcache.rendering import Picture
from kdcache.rendering.figures import show_all
from kdcache.rendering.parts import fields
from kdcache.training.curve_picture import curve_picture
from kdcache.training.reporter import Reporter
from kdcache.training.run_folder import LOG, read_json
from kdcache.training.trainer import DistillationTrainer


@dataclass(frozen=True)
class TrainResult:
    """A trained student.

    Attributes:
        folder: model, tokenizer, `metrics.json`, `training_log.json`, `curves.png`, `recipe.toml`,
            `cache.json`.
        metrics: final losses, steps, seconds, the share of them spent waiting for batches, speed
            and memory; scores under "evaluation", and how its weights were chosen under "dev" (see
            `choosing.Choice.report`).
        wrote: whether this process wrote the folder; of several ranks, the first does.
    """

    folder: Path
    metrics: Json
    wrote: bool = True

    def __repr__(self) -> str:
        losses = ", ".join(f"{k} {v:.4g}" for k, v in self.metrics["losses"].items())
        return (
            f"<TrainResult {self.folder}: {self.metrics['steps']:,} steps in "
            f"{self.metrics['seconds']:.1f} s, {losses}>"
        )

    def _repr_html_(self) -> str:
        curves = self.curves() if self.wrote else None
        return fields(self._rows()).html() + (curves.html() if curves else "")

    def _rows(self) -> Iterator[tuple[str, str]]:
        metrics = self.metrics
        yield "student", f"`{self.folder}`"
        yield "steps", f"{metrics['steps']:,} in {metrics['seconds']:.1f} s"
        yield "losses", show_all(metrics["losses"])
        if dev := metrics.get("dev"):
            teacher = dev["teacher"]
            theirs = "" if teacher is None else f"; the teacher's is {teachers_score(teacher)}"
            yield f"{called(dev['metric'])} on dev", f"{dev['best']['value']:.4g}{theirs}"
        if scores := metrics.get("evaluation"):
            metric = headline(scores, scores["task"])
            yield f"{called(metric)} on {scores['file']}", score_cell(scores, metric)

    def curves(self) -> Picture | None:
        """The student's scores on its dev set and its losses over steps; a notebook shows them.

        None where nothing was logged, as of a run of no step.

        Raises ConfigError if the folder's log is damaged, or gone.
        """
        dev = self.metrics.get("dev")
        return curve_picture(read_json(self.folder / LOG), dev, name="curves", of=self.folder.name)


SUMS = ("steps", "steps_run", "seconds", "documents", "tokens", "data_wait_seconds")
"""Figures of a run that are those of its stages, added up."""


def joined_metrics(stages: Mapping[str, Json], logs: Mapping[str, Sequence[Json]]) -> Json:
    """Figures of a run of several stages: the last one's losses, sums, and all under "stages".

    Steps of its scores on a dev set are counted as `joined_logs` counts them.
    """
    *_, last = stages.values()
    if len(stages) == 1:
        return last
    if "dev" in last:
        *_, name = stages
        last = {**last, "dev": _moved(last["dev"], _begins(logs)[name], name)}
    sums = {name: sum(stage[name] for stage in stages.values()) for name in SUMS}
    rates = {f"{what}_per_second": sums[what] / sums["seconds"] for what in ("documents", "tokens")}
    sums["epochs"] = sum(stage["epochs"] for stage in stages.values())
    return {**last, **sums, **rates, "stages": dict(stages)}


def joined_logs(stages: Mapping[str, Sequence[Json]]) -> list[Json]:
    """The log of a run: each entry with its stage, and its step counted from the first stage's."""
    if list(stages) == [""]:
        return list(stages[""])
    return [
        {**entry, "step": before + entry["step"], "stage": name}
        for (name, entries), before in zip(stages.items(), _begins(stages).values(), strict=True)
        for entry in entries
    ]


def _begins(stages: Mapping[str, Sequence[Json]]) -> dict[str, int]:
    """The steps that were taken before each stage, by its name."""
    taken = [max((entry["step"] for entry in entries), default=0) for entries in stages.values()]
    return dict(zip(stages, accumulate([0, *taken]), strict=False))


def _moved(dev: Json, before: int, stage: str) -> Json:
    """What a stage tells of its choice, with the steps of the stages before it counted."""
    points = [{**point, "step": before + point["step"]} for point in dev["points"]]
    best = {**dev["best"], "step": before + dev["best"]["step"]}
    return {**dev, "points": points, "best": best, "stage": stage}


def run_metrics(trainer: DistillationTrainer, reporter: Reporter, seconds: float) -> Json:
    """Figures of this process's share of the run; a resumed run tells of what it added."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    last = {name: value for entry in entries for name, value in entry.items()}  # each head's last
    documents, tokens = trainer.seen()
    metrics: Json = {
        "losses": {name: value for name, value in last.items() if name.startswith("loss")},
        "steps": trainer.state.global_step,
        "steps_run": len(reporter.step_seconds),
        "epochs": trainer.state.epoch,
        "seconds": seconds,
        "step_seconds_median": reporter.median_step,
        "documents": documents,
        "tokens": tokens,
        "documents_per_second": documents / seconds,
        "tokens_per_second": tokens / seconds,
        "data_wait_seconds": trainer.wait_seconds,
        "data_wait_share": trainer.wait_seconds / max(sum(reporter.step_seconds), 1e-9),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if trainer.args.device.type == "cuda":
        metrics["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return metrics
