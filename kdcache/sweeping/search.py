"""Settings that are drawn, each in the light of those before: Optuna's TPE over the axes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcache.errors import MissingExtraError
from kdcache.manifest import Json
from kdcache.sweeping.grid import Grid, Range, Values, in_toml
from kdcache.sweeping.record import Student

JOURNAL = "search.log"
SETTINGS = "settings"
DIGITS = 4  # of a number that is drawn: people read it in tables and in names of folders


def require_extra() -> None:
    """Raise MissingExtraError unless Optuna can be imported."""
    try:
        import optuna  # noqa: F401 - whether it is there is the question
    except ImportError as error:
        raise MissingExtraError(
            f"--search needs optuna ({error}); run: pip install 'kdcache[search]'"
        ) from error


@dataclass
class _Trial:
    """A setting that was drawn, and what those of its students that are done are worth."""

    number: int
    students: list[Student]
    worths: dict[str, float | None] = field(default_factory=dict)


class Search:
    """A number of settings drawn from a grid, and a journal of them in the folder of the sweep.

    With one worker the same call draws the same settings, stopped in between or not: what is drawn
    next follows from its number and the scores before it.

    Args:
        count: settings in all, those of the journal among them.

    Attributes:
        students: of all settings that were drawn, in that order, each once.
    """

    def __init__(self, grid: Grid, count: int, folder: Path) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.grid, self.count = grid, count
        self.study: Any = optuna.create_study(
            study_name="sweep",
            storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            load_if_exists=True,
            direction="maximize",
        )
        self.students: dict[str, Student] = {}
        self.waiting: list[Student] = []
        self.under_way: list[_Trial] = []
        for trial in self.study.get_trials(deepcopy=False):
            if SETTINGS in trial.user_attrs:
                self._take_up(trial.number, trial.user_attrs[SETTINGS])
            elif not trial.state.is_finished():  # stopped while it was drawn
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def following(self) -> Student | None:
        """The next student; None: all that are asked for are under way or done."""
        drawn = len(self.study.get_trials(deepcopy=False))
        if not self.waiting and drawn < self.count:
            self._take_up(*self._draw(drawn))
        return self.waiting.pop(0) if self.waiting else None

    def done(self, name: str, worth: float | None) -> None:
        """Learn what a student is worth, the more the better; None: it failed."""
        from optuna.trial import TrialState

        for trial in list(self.under_way):
            names = {student.name for student in trial.students}
            if name not in names:
                continue
            trial.worths[name] = worth
            if trial.worths.keys() == names:
                self.under_way.remove(trial)
                there = [value for value in trial.worths.values() if value is not None]
                if there:
                    self.study.tell(trial.number, statistics.fmean(there), skip_if_finished=True)
                else:
                    self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _draw(self, number: int) -> tuple[int, Json]:
        """A new trial, by a sampler of its own: one that goes on draws otherwise than one that was
        stopped and made again.
        """
        from optuna.samplers import TPESampler

        self.study.sampler = TPESampler(seed=number)
        trial = self.study.ask()
        settings = {name: _drawn(trial, name, values) for name, values in self.grid.axes.items()}
        trial.set_user_attr(SETTINGS, settings)
        return trial.number, settings

    def _take_up(self, number: int, settings: Json) -> None:
        students = self.grid.students(settings)
        self.students |= {one.name: one for one in students}
        self.under_way.append(_Trial(number, students))
        self.waiting += students


def _drawn(trial: Any, name: str, values: Values) -> Any:
    if not isinstance(values, Range):
        texts = {in_toml(value): value for value in values}
        return texts[trial.suggest_categorical(name, list(texts))]
    if values.whole:
        return trial.suggest_int(name, values.low, values.high, log=values.by_log)
    value = trial.suggest_float(name, values.low, values.high, log=values.by_log)
    return min(max(float(f"{value:.{DIGITS}g}"), values.low), values.high)
