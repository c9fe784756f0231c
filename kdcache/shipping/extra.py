"""The packages that shipping needs beyond those of kdcache."""

from __future__ import annotations

from kdcache.errors import require_packages

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_extra() -> None:
    """Raise MissingExtraError unless all of `PACKAGES` can be imported."""
    require_packages("ship needs", PACKAGES, "onnx")
