"""Whether a student reads every document of a run as it would read it alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import transformers

from kdcache.errors import ModelError
from kdcache.evaluation.scoring import require_fit, settle
from kdcache.models import check_alone
from kdcache.models.recording import heads_of
from kdcache.models.run import EQUAL
from kdcache.progress import Progress
from kdcache.signals import TAP_KINDS, Tap
from kdcache.training.dev import DevSet
from kdcache.training.mixture import Mixture


def settle_student(
    student: Any,
    mixture: Mixture,
    scored: Mapping[int, DevSet],
    taps: Iterable[Tap],
    args: transformers.TrainingArguments,
    progress: Progress,
) -> None:
    """Put a student on the device it trains on, and see to it that it reads every document alone.

    `taps` are read out of it, and it is `scored` on dev sets, by the number of the head. One that
    does not is given documents of one length at a time.

    Raises:
        ModelError: it does not, and several processes, which do not keep step so, train it.
    """
    if not (args.fsdp or args.deepspeed):  # which place it themselves
        student.to(args.device)
    hidden = any(TAP_KINDS[tap.name].per != "row" for tap in taps)
    name, apart = "the student", False
    for one, (first, *others) in mixture.readers(student):
        apart |= check_alone(
            one, first.plan.task, first.plan, name=name, hidden=hidden, progress=progress
        )
        for other in others:
            apart |= settle(one, other.plan, name, progress)
            setattr(one, EQUAL, apart)
    if apart and args.world_size > 1:
        raise ModelError(
            "the student says something else of documents that are padded, and processes do not "
            "keep step on documents of one length at a time: train with one process, or choose "
            "another student"
        )
    for number, dev in scored.items():
        one = heads_of(student)[number]
        if dev.plan is not mixture.caches[number].plan:
            require_fit(one, dev.plan, name)
            apart |= settle(one, dev.plan, name, progress)
            setattr(one, EQUAL, apart)
