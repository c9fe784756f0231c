"""Signals: the kinds of teacher output a cache can hold. SIGNALS is the table of all of them."""

from __future__ import annotations

from kdcache.signals.activations import Activations, Attention, Head
from kdcache.signals.attention import AttentionInputs
from kdcache.signals.attributing import Attributing
from kdcache.signals.base import (
    SAMPLED_ROWS,
    ArraySpec,
    ArtifactSources,
    AsksLabels,
    Columns,
    Differentiated,
    HasArtifacts,
    Packing,
    Signal,
    merge,
    of_signal,
)
from kdcache.signals.codecs.dense import DenseLogits
from kdcache.signals.codecs.output_layer import HeadLabels, HiddenHead
from kdcache.signals.codecs.quantised import LayerRows
from kdcache.signals.codecs.sampled import SampledLogits
from kdcache.signals.codecs.topk import TopKLogits
from kdcache.signals.codecs.topk_small import SmallTopK
from kdcache.signals.features import FEATURES, DocumentVectors, LayerVectors, TokenVectors
from kdcache.signals.gradients import Attributions, Jacobian
from kdcache.signals.positions import POSITIONS, select
from kdcache.signals.soft_labels import SoftLabels, SoftSignal, SoftUse, TeacherOutputs
from kdcache.signals.table import (
    SIGNALS,
    Hidden,
    check_name,
    from_json,
    parse,
    parse_all,
    parse_named,
    to_record,
    unknown_part,
)
from kdcache.signals.taps import EMBEDDINGS, HEAD, LOGITS, TAP_KINDS, ModelSizes, Tap, TapKind
from kdcache.signals.together import (
    artifacts,
    given_by,
    holder,
    join,
    named_arrays,
    taps_of,
    with_artifacts,
)

__all__ = [
    "EMBEDDINGS",
    "FEATURES",
    "HEAD",
    "LOGITS",
    "POSITIONS",
    "SAMPLED_ROWS",
    "SIGNALS",
    "TAP_KINDS",
    "Activations",
    "ArraySpec",
    "ArtifactSources",
    "AsksLabels",
    "Attention",
    "AttentionInputs",
    "Attributing",
    "Attributions",
    "Columns",
    "DenseLogits",
    "Differentiated",
    "DocumentVectors",
    "HasArtifacts",
    "Head",
    "HeadLabels",
    "Hidden",
    "HiddenHead",
    "Jacobian",
    "LayerRows",
    "LayerVectors",
    "ModelSizes",
    "Packing",
    "SampledLogits",
    "Signal",
    "SmallTopK",
    "SoftLabels",
    "SoftSignal",
    "SoftUse",
    "Tap",
    "TapKind",
    "TeacherOutputs",
    "TokenVectors",
    "TopKLogits",
    "artifacts",
    "check_name",
    "from_json",
    "given_by",
    "holder",
    "join",
    "merge",
    "named_arrays",
    "of_signal",
    "parse",
    "parse_all",
    "parse_named",
    "select",
    "taps_of",
    "to_record",
    "unknown_part",
    "with_artifacts",
]
