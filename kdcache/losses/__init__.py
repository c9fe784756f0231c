"""Losses of a recipe. LOSSES is the table of all of them."""

from __future__ import annotations

from kdcache.losses.alp import ALP
from kdcache.losses.base import LABELS, PEERS, Loss, Match, Pair, Step
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.cross_entropy import Hard, hard_loss
from kdcache.losses.feature_mse import HiddenMSE, hidden_loss
from kdcache.losses.kl import SoftKL, soft_and_hard
from kdcache.losses.logit_mse import LogitMSE, logit_mse
from kdcache.losses.mutual import Mutual, mutual_rows
from kdcache.losses.rkd import RKD
from kdcache.losses.schedules import SCHEDULES, Moment, Schedule

__all__ = [
    "ALP",
    "LABELS",
    "LOSSES",
    "PEERS",
    "RKD",
    "SCHEDULES",
    "CacheSpec",
    "Hard",
    "HiddenMSE",
    "LogitMSE",
    "Loss",
    "Match",
    "Moment",
    "Mutual",
    "Pair",
    "Schedule",
    "SoftKL",
    "Step",
    "hard_loss",
    "hidden_loss",
    "logit_mse",
    "mutual_rows",
    "soft_and_hard",
]

LOSSES: dict[str, type[Loss]] = {
    kind.kind: kind for kind in (Hard, SoftKL, LogitMSE, HiddenMSE, RKD, ALP, Mutual)
}
"""Every loss a recipe can name: kind -> configuration."""
