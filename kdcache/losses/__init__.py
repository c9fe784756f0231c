"""Losses of a recipe. LOSSES is the table of all of them."""

from __future__ import annotations

from kdcache.losses.alp import ALP
from kdcache.losses.at import AT
from kdcache.losses.attention import AttentionScores
from kdcache.losses.attribution import Attribution
from kdcache.losses.base import LABELS, PEERS, Loss, Match, Pair, Step
from kdcache.losses.batch_relations import BatchRelations
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.cc import CC
from kdcache.losses.contrast import Contrast
from kdcache.losses.cosine import Cosine
from kdcache.losses.crd import CRD
from kdcache.losses.cross_entropy import Hard, hard_loss
from kdcache.losses.distances import Distances
from kdcache.losses.emd import EMD
from kdcache.losses.feature_mse import HiddenMSE, hidden_loss
from kdcache.losses.fsp import FSP
from kdcache.losses.kl import SoftKL, soft_and_hard
from kdcache.losses.logit_mse import LogitMSE, logit_mse
from kdcache.losses.moments import Moments
from kdcache.losses.mutual import Mutual, mutual_rows
from kdcache.losses.nst import NST
from kdcache.losses.one import ONE
from kdcache.losses.pkt import PKT
from kdcache.losses.ptp import PTP
from kdcache.losses.relations import Relations
from kdcache.losses.rkd import RKD
from kdcache.losses.rl import RL
from kdcache.losses.schedules import SCHEDULES, Moment, Schedule
from kdcache.losses.simkd import SimKD
from kdcache.losses.sp import SP
from kdcache.losses.vid import VID
from kdcache.losses.words import Words

__all__ = [
    "ALP",
    "AT",
    "CC",
    "CRD",
    "EMD",
    "FSP",
    "LABELS",
    "LOSSES",
    "NST",
    "ONE",
    "PEERS",
    "PKT",
    "PTP",
    "RKD",
    "RL",
    "SCHEDULES",
    "SP",
    "VID",
    "AttentionScores",
    "Attribution",
    "BatchRelations",
    "CacheSpec",
    "Contrast",
    "Cosine",
    "Distances",
    "Hard",
    "HiddenMSE",
    "LogitMSE",
    "Loss",
    "Match",
    "Moment",
    "Moments",
    "Mutual",
    "Pair",
    "Relations",
    "Schedule",
    "SimKD",
    "SoftKL",
    "Step",
    "Words",
    "hard_loss",
    "hidden_loss",
    "logit_mse",
    "mutual_rows",
    "soft_and_hard",
]

LOSSES: dict[str, type[Loss]] = {
    kind.kind: kind
    for kind in (
        Hard,
        SoftKL,
        LogitMSE,
        HiddenMSE,
        Cosine,
        AttentionScores,
        Attribution,
        ALP,
        RKD,
        RL,
        SP,
        PKT,
        CC,
        CRD,
        AT,
        NST,
        FSP,
        VID,
        Distances,
        BatchRelations,
        Contrast,
        Mutual,
        ONE,
        PTP,
        SimKD,
        EMD,
        Relations,
        Moments,
        Words,
    )
}
"""Every loss a recipe can name: kind -> configuration."""
