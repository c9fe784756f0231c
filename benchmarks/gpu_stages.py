"""The table of what is asked of a GPU: stages of many items each, for `gpu_session.py`."""

from __future__ import annotations

from functools import partial

import gpu_checks as checks
import gpu_counters as counters
import gpu_times as times
import gpu_whole as whole
from gpu_run import Stage

STAGES = {
    "checks": Stage(checks.checked, checks.to_check, 150, processes=4),
    "beyond_2_31": Stage(checks.checked, checks.huge, 60),
    "graphs": Stage(checks.captured, partial(checks.calls, training=True), 90, gpu=True),
    "synchronisation": Stage(checks.unsynchronised, checks.calls, 90, gpu=True),
    "races": Stage(checks.raced, partial(checks.calls, op="topk_kl", training=True), 60),
    "compiled": Stage(
        times.compiled,
        partial(times.shapes, places=times.PLACES[:1]),
        150,
        processes=8,
        every=len(times.SHAPES),
    ),
    "pipeline": Stage(whole.measured, whole.models, 180),
    "shapes": Stage(times.shaped, times.shapes, 60, every=len(times.SHAPES)),
    "products": Stage(times.products, times.heads, 20, gpu=True),
    "times": Stage(times.timed, times.to_time, 270),
    "counters": Stage(counters.counted, lambda: [counters.COUNTED], 40, gpu=True),
}
