"""Plans: a tokenised corpus in a seeded order, its rows, and batches of it."""

from kdcache.plans.config import DOCUMENT_COLUMNS, LABEL_DTYPE, PlanConfig, document_columns
from kdcache.plans.parts import Array, cut, part_rows, round_up
from kdcache.plans.plan import Column, Docs, Plan, column_space

__all__ = [
    "DOCUMENT_COLUMNS",
    "LABEL_DTYPE",
    "Array",
    "Column",
    "Docs",
    "Plan",
    "PlanConfig",
    "column_space",
    "cut",
    "document_columns",
    "part_rows",
    "round_up",
]
