"""Plans: a tokenised corpus in a seeded order, its rows, and batches of it."""

from kdcache.plans.plan import (
    EXAMPLE_COLUMNS,
    Array,
    Column,
    Docs,
    Plan,
    PlanConfig,
    column_space,
    cut,
    part_rows,
    round_up,
)

__all__ = [
    "EXAMPLE_COLUMNS",
    "Array",
    "Column",
    "Docs",
    "Plan",
    "PlanConfig",
    "column_space",
    "cut",
    "part_rows",
    "round_up",
]
