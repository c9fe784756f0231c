"""The command that checks a cache: is it what was written, and can it be made so again?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_json, print_table, print_title, show

if TYPE_CHECKING:
    from kdcache.maintenance.spot_check import Figure, Spot
    from kdcache.maintenance.verifying import Finding

DAMAGED = 1


def verify(
    context: typer.Context,
    cache: o.Cache,
    full: Annotated[bool, typer.Option("--full", help="Read every byte and check it.")] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make what is damaged again, with the teacher of then."),
    ] = False,
    spot: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Run the teacher again on N documents and compare with what is stored.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The teacher, if it is not where it was."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Its tokenizer, if it does not lie with the teacher."),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Its documents, as given to `build`; needed where the plan's rows are damaged.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N (as the cache was made)."),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Check that a cache is what was written.

    Names every damaged object and its part, and exits with 1 if there are any. Without --full it
    checks records, sizes and the checksums in each shard's index. Caches that an earlier version
    made wrongly get a warning.
    """
    from kdcache.maintenance.outdated import outdated
    from kdcache.maintenance.verifying import find_damage

    asked: dict[str, Any] = {"teacher": teacher, "device": device, "progress": context.obj}
    repaired: tuple[Finding, ...] = ()
    if repair:
        from kdcache.maintenance.repair import repair as mend

        documents = o.one_corpus(corpus) if corpus else None
        done = mend(cache, tokenizer=tokenizer, corpus=documents, **asked)
        repaired, found = done.repaired, list(done.left)
    else:
        found = find_damage(cache, full=full, progress=context.obj)
    spotted = None
    if spot is not None and not found:
        from kdcache.maintenance.spot_check import spot_check

        spotted = spot_check(cache, spot, **asked)
        found = spotted.findings
    warnings = outdated(cache)
    if as_json:
        report = _report(cache, full or repair, found, repaired, spotted)
        print_json({**report, "warnings": warnings})
    else:
        for warning in warnings:
            print(f"warning: {warning}")
        for finding in repaired:
            print(f"repaired: {finding}")
        for finding in found:
            print(finding)
        if spotted is not None:
            _print_spot(spotted)
        print(_verdict(cache, len(found), full or repair))
    if found:
        raise typer.Exit(DAMAGED)


def _report(
    cache: str, full: bool, found: list[Finding], repaired: tuple[Finding, ...], spot: Spot | None
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "path": str(cache),
        "full": full,
        "ok": not found,
        "problems": [str(finding) for finding in found],
        "findings": [finding.to_json() for finding in found],
        "repaired": [finding.to_json() for finding in repaired],
    }
    if spot is not None:
        report["spot"] = spot.to_json()
    return report


def _print_spot(spot: Spot) -> None:
    """The figure of each kind that comes nearest to what it may be."""
    worst: dict[tuple[str, str], Figure] = {}
    for figure in spot.figures:
        before = worst.get((figure.signal, figure.name))
        if before is None or not figure.found / figure.limit <= before.found / before.limit:
            worst[figure.signal, figure.name] = figure
    print_title(f"The teacher on {spot.documents:,} documents, worst part")
    rows = [
        (f.signal, f.name.replace("_", " "), show(f.found), show(f.stored), show(f.limit), f.part)
        for f in worst.values()
    ]
    header = ("signal", "measure", "found", "stored", "at most", "part")
    print_table(header, rows, right=(2, 3, 4, 5))


def _verdict(cache: str, problems: int, full: bool) -> str:
    if problems:
        return f"{cache}: {problems:,} problem{'s' if problems > 1 else ''}"
    if full:
        return f"{cache}: every byte is as it was written"
    return f"{cache}: every object is there with its size; --full reads every byte"
