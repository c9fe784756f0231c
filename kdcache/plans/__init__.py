"""Plans: a tokenised corpus in a seeded order, its rows, and batches of it."""

from kdcache.plans.plan import (
    EXAMPLE_COLUMNS,
    LABEL_DTYPE,
    Array,
    Column,
    Docs,
    Plan,
    PlanConfig,
    column_space,
    cut,
    example_columns,
    part_rows,
    round_up,
)

__all__ = [
    "EXAMPLE_COLUMNS",
    "LABEL_DTYPE",
    "Array",
    "Column",
    "Docs",
    "Plan",
    "PlanConfig",
    "column_space",
    "cut",
    "example_columns",
    "part_rows",
    "round_up",
]
