"""A student loaded as any application would load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.manifest import Json

TEXTS = {
    "reviews": "The plot is thin, but the actors carry every scene.",
    "docstrings": "Return the event loop that runs in the current thread.",
}


def pipeline_call(folder: Path, text: str) -> Json:
    """Let transformers' own pipeline read a text: the lines of "code" that do it, and "output"."""
    from transformers import pipeline

    task: Any = "text-classification"  # as a literal it would be one of 30 overloads
    classify: Any = pipeline(task, model=str(folder), device="cpu")
    code = [
        "from transformers import pipeline",
        f'classify = pipeline("{task}", model="{folder}", device="cpu")',
        f'classify("{text}")',
    ]
    return {"code": code, "output": repr(classify(text))}
