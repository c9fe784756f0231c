"""Losses of a recipe. LOSSES is the table of all of them."""

from __future__ import annotations

from kdcache.losses.base import CacheFacts, Loss, Needs, Step
from kdcache.losses.hard import Hard, hard_loss
from kdcache.losses.hidden import HiddenMSE, hidden_loss
from kdcache.losses.logit_mse import LogitMSE, logit_mse
from kdcache.losses.objective import Objective
from kdcache.losses.soft import SoftAndHard, SoftKL, soft_and_hard

__all__ = [
    "LOSSES",
    "CacheFacts",
    "Hard",
    "HiddenMSE",
    "LogitMSE",
    "Loss",
    "Needs",
    "Objective",
    "SoftAndHard",
    "SoftKL",
    "Step",
    "hard_loss",
    "hidden_loss",
    "logit_mse",
    "soft_and_hard",
]

LOSSES: dict[str, type[Loss]] = {kind.kind: kind for kind in (Hard, SoftKL, LogitMSE, HiddenMSE)}
"""Every loss a recipe can name: kind -> configuration."""
