"""The program: its commands and the options that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import kdcache
from kdcache.progress import quiet as silent
from kdcache_cli import (
    ascending,
    augmenting,
    bench,
    caches,
    comparing,
    demo,
    evaluating,
    moving,
    planning,
    profiling,
    recipes,
    reporting,
    shipping,
    sweeping,
    teaching,
    training,
    verifying,
)
from kdcache_cli.examples import example
from kdcache_cli.progress import reporter

COMMANDS: dict[str, Callable[..., None]] = {
    "plan": planning.plan,
    "build": planning.build,
    "inspect": caches.inspect,
    "verify": verifying.verify,
    "copy": moving.copy,
    "merge": moving.merge,
    "export": moving.export,
    "teach": teaching.teach,
    "augment": augmenting.augment,
    "ascend": ascending.ascend,
    "train": training.train,
    "profile": profiling.profile,
    "sweep": sweeping.sweep,
    "evaluate": evaluating.evaluate,
    "compare": comparing.compare,
    "ship": shipping.ship,
    "report": reporting.report,
    "recipes": recipes.recipes,
    "demo": demo.demo,
}

GROUPS: dict[str, typer.Typer] = {"bench": bench.app}

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: nothing is cut off, and it starts faster
    epilog=example("kdcache"),
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kdcache {kdcache.__version__}")
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Run the teacher once, train any number of students from its outputs.

    plan tokenises a corpus, build runs the teacher over it and writes a cache, train distils a
    student from the cache, profile tells where its time goes, sweep trains many, evaluate
    measures one, compare puts it beside the teacher, ship makes it run without torch, report
    tells all of it on a page.
    """
    context.obj = silent if quiet else reporter()


def _register() -> None:
    for name, function in COMMANDS.items():
        app.command(name, epilog=example(name))(function)
    for name, group in GROUPS.items():
        app.add_typer(group, name=name, epilog=example(name))


_register()
