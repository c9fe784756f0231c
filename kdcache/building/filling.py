"""Run the teacher over the parts of a cache that are missing, and commit each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from kdcache.building.capture import Capture
from kdcache.corpora.numbering import Numbering
from kdcache.errors import KdcacheError
from kdcache.interrupts import held_interrupts
from kdcache.manifest import Json
from kdcache.models import Teacher
from kdcache.plans import Array
from kdcache.progress import Progress
from kdcache.spans import TEACHING, WRITE, WRITER, span
from kdcache.store import Claims, Writer
from kdcache.store.io.durable_writes import writing


def fill(writer: Writer, teacher: Teacher, batch_tokens: int, progress: Progress) -> None:
    """Run the teacher over every part that is not committed, then mark the cache complete."""
    writer.republish()
    cache, missing = writer.cache, writer.cache.missing
    parts = cache.plan.parts
    if cache.complete:
        progress.say(f"{writer.path} is complete: {parts} of {parts} parts; nothing to do")
        return
    if len(missing) < parts:
        rest = f"going on with part {missing[0]}" if missing else "none is left to be run"
        progress.say(
            f"resuming {writer.path}: {parts - len(missing)} of {parts} parts are committed; {rest}"
        )
    if missing:
        capture = Capture(cache, teacher, batch_tokens, progress)
        if cache.plan.label_kind.numbered:
            capture.numbering = Numbering()
        with span(TEACHING):
            _run_parts(writer, missing, capture, progress)
        _say_renumbering(capture, progress)
        writer.republish()  # another builder of the cache may have been killed meanwhile
    writer.finalize()


def _say_renumbering(capture: Capture, progress: Progress) -> None:
    """Warn, once, if the teacher seems to number its classes otherwise than the labels do."""
    if capture.numbering is not None:
        warning = capture.numbering.warning(capture.plan.config.classes)
        capture.numbering = None
        if warning is not None:
            progress.say(warning)


@contextmanager
def _claims(writer: Writer) -> Iterator[Claims]:
    """This builder's claims, given up in the end whatever happens."""
    claims = Claims(writer.staging / "claims")
    with writing(writer.path):
        try:
            yield claims
        finally:
            claims.drop()


def _run_parts(writer: Writer, parts: list[int], capture: Capture, progress: Progress) -> None:
    """Run the teacher over `parts`, leaving out those that another builder commits meanwhile."""
    plan = writer.cache.plan
    tokens = {part: plan.extent(plan.part_docs(part), "token") for part in parts}
    pending: Future[None] | None = None
    label = f"running the teacher {capture.teacher.identity['name']} for {writer.path.name}"
    with (
        ThreadPoolExecutor(1, "kdcache-writer") as thread,
        progress.bar(label, unit="tokens", total=sum(tokens.values())) as advance,
        _claims(writer) as claims,
        held_interrupts() as check,
    ):

        def step(tokens: int) -> None:
            advance(tokens)
            check()

        def write(part: int, arrays: dict[str, Array], fidelity: Json) -> None:
            with span(WRITE):
                writer.write_part(part, arrays, fidelity, capture.forward)

        try:
            left = list(parts)
            while (part := claims.take(left)) is not None:
                arrays, fidelity = capture.part(part, step)
                if capture.numbering is not None and capture.numbering.enough:
                    _say_renumbering(capture, progress)
                left.remove(part)
                if pending is not None:
                    with span(WRITER):
                        pending.result()
                pending = thread.submit(write, part, arrays, fidelity)
                for other in set(left).difference(writer.cache.missing):
                    left.remove(other)
                    advance(tokens[other])
            if pending is not None:
                with span(WRITER):
                    pending.result()
        except KeyboardInterrupt as stop:
            if pending is not None:
                pending.result()
            done = plan.parts - len(writer.cache.missing)
            raise KeyboardInterrupt(
                f"{done} of {plan.parts} parts are committed; run the same command again to go on"
            ) from stop
        except torch.cuda.OutOfMemoryError as error:
            raise KdcacheError(
                "the GPU's memory is full; run the same command again with a smaller --batch-tokens"
            ) from error
