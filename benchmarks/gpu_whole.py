"""Building and training on a GPU, from the stage `pipeline`; a machine may lack what they take.

What is missing is told, and the session goes on. It is carried there as wheels, in a folder beside
the code, installed with `pip install --no-index --no-deps --target FOLDER WHEELS/*`, and found by
PYTHONPATH=FOLDER. An image that has torch, transformers, accelerate, numba, pandas and pyarrow
lacks datasets, dill, donfig, google-crc32c, multiprocess, numcodecs, tomli-w and zarr.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

from gpu_run import ROOT, TOLD, Json, Session

from kdcache.bench.report import installed

LARGE = "0.5B"


def models() -> Iterator[tuple[str, str]]:
    """Teachers, and what is measured of each."""
    for model in ("tiny", LARGE):
        yield model, "build"
        yield model, "train"


def measured(session: Session, model: str, what: str) -> Json:
    """What building or training takes with a teacher of that size."""
    if model == LARGE and not session.on_gpu:
        return {TOLD: "needs a GPU"}
    try:
        import gpu_pipeline

        return gpu_pipeline.MEASURED[what](session, model)
    except ImportError as error:
        if (error.name or "").startswith("kdcache"):
            raise
        return {"absent": str(error), "carry": missing()}


def missing() -> list[str]:
    """Requirements of kdcache that are not installed, each of which needs others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [
        line for line in project["dependencies"] if installed(re.split("[<>=]", line)[0]) is None
    ]
