"""The bench commands as a group, one file each beside this one."""

from __future__ import annotations

from collections.abc import Callable

import typer

from kdcache_cli import bench_fidelity, bench_kernels, bench_store
from kdcache_cli.examples import example

COMMANDS: dict[str, Callable[..., None]] = {
    "kernels": bench_kernels.kernels,
    "store": bench_store.store,
    "fidelity": bench_fidelity.fidelity,
}

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Measure this machine; answers are checked first.",
)


def _register() -> None:
    for name, function in COMMANDS.items():
        app.command(name, epilog=example(f"bench {name}"))(function)


_register()
