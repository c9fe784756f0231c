"""The [inputs] table of a recipe: what a student reads in the place of its word embeddings."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kdcache.errors import ConfigError, one_of
from kdcache.inputs import INPUTS, Asked, Inputs
from kdcache.inputs.binding import FIELD, words_of
from kdcache.losses import CacheSpec, Moment, Schedule
from kdcache.losses.schedules import moments, numbers
from kdcache.manifest import Json
from kdcache.models.embedded import EMBEDS, word_embeddings
from kdcache.models.recording import choose_head
from kdcache.plans.batch import Batch
from kdcache.signals import LOGITS, ModelSizes, of_signal
from kdcache.training.loss_tables import scheduled


@dataclass(frozen=True, kw_only=True)
class ChosenInputs:
    """A way of INPUTS as a recipe has it.

    Attributes:
        way: with the numbers that it starts with.
        schedules: of its numbers, by field.
    """

    way: Inputs
    schedules: Mapping[str, Schedule] = field(default_factory=dict)

    def to_json(self) -> Json:
        """The table, every default spelled out."""
        changing = {name: asdict(schedule) for name, schedule in self.schedules.items()}
        return {"kind": self.way.kind, **asdict(typing.cast(Any, self.way)), **changing}

    def __str__(self) -> str:
        values = {**self.to_json(), **self.schedules}
        told = [f"{name}={value}" for name, value in values.items() if name != "kind" and value]
        return f"{self.way.kind} ({', '.join(told)})" if told else self.way.kind


def inputs_of(value: Any, where: str = FIELD) -> ChosenInputs | None:
    """What a recipe or stage says of inputs: a name, or a table of `kind` and its options.

    Raises ConfigError for what makes no sense.
    """
    if value in ("", None, {}):
        return None
    if isinstance(value, ChosenInputs):
        return value
    table = {"kind": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
        raise ConfigError(
            f"{where} is a name ({', '.join(INPUTS)}) or a table such as "
            f'{{ kind = "{next(iter(INPUTS))}" }}; got {value!r}'
        )
    way = INPUTS[one_of(f"kind of {where}", table["kind"], INPUTS)]
    plain = {key: value for key, value in table.items() if key != "kind"}
    made, schedules = scheduled(way, plain, where)
    return ChosenInputs(way=made, schedules=schedules)


class BoundInputs:
    """A way of INPUTS held against a cache, from which it embeds the tokens of batches.

    Attributes:
        way: with the numbers it has now.
        arrays: what has to be read of the cache for it.

    Raises ConfigError where the cache does not hold what it asks for, or several students are
    trained together.
    """

    def __init__(self, chosen: ChosenInputs, cache: CacheSpec, student: ModelSizes) -> None:
        if student.peers:
            raise ConfigError(
                f"{FIELD}.kind={chosen.way.kind} stands in the place of one student's word "
                "embeddings, and several are trained together: leave it out, or train one student"
            )
        if cache.reworded:
            raise ConfigError(
                f"{FIELD}.kind={chosen.way.kind} reads what is cached of the teacher's tokens, and "
                "the student has a tokenizer of its own (student.tokenizer): leave one of the two "
                "out"
            )
        self.way, self.schedules = chosen.way, chosen.schedules
        for way in moments(chosen.way, chosen.schedules):
            self._words = words_of(way, cache)  # which refuses numbers it will come to
        self.arrays = [] if self._words is None else list(self._words.arrays)

    def put(self, model: Any, batch: Batch) -> Batch:
        """The batch with what the model reads in the place of its word embeddings.

        Raises ModelError for a model that has no table of them.
        """
        choose_head(model, batch.cache)
        table, ids = word_embeddings(model).weight, batch["input_ids"].masked_select(batch.mask)
        rows = self.way.embed(Asked(table=table, ids=ids, words=self._said(batch)))
        return batch.beside(**{EMBEDS: batch.at_tokens(rows)})

    def _said(self, batch: Batch) -> Any:
        """What the masked language model says of every token of a batch."""
        if self._words is None:
            return None
        stored = of_signal(batch, self._words.signal)
        return self._words.held.decode(stored, LOGITS, self._words.source.shape)

    def advance(self, moment: Moment) -> None:
        """Give the numbers that have a schedule what they are at a moment of the stage."""
        now = {name: schedule.at(moment) for name, schedule in self.schedules.items()}
        self.way = numbers(self.way, now)

    def scheduled(self) -> dict[str, float]:
        """Numbers that have a schedule as they are now, by "inputs.FIELD"."""
        return {f"{FIELD}.{name}": float(getattr(self.way, name)) for name in self.schedules}


def require_table(args: Any, config: Any) -> None:
    """Raise ConfigError for a run in which nothing can stand in the place of word embeddings."""
    ways = {
        "training.fsdp": args.fsdp,
        "training.deepspeed": args.deepspeed,
        "training.torch_compile": args.torch_compile,
        "a student that is a module and no model of transformers'": any(
            hasattr(one, "tap_widths") for one in getattr(config, "members", ()) or (config,)
        ),
    }
    for way, there in ways.items():
        if there:
            raise ConfigError(
                f"{FIELD} stands in the place of a student's word embeddings, which does not go "
                f"with {way}: leave one of the two out"
            )
