"""The packages that shipping needs beyond those of kdcache."""

from __future__ import annotations

from importlib import import_module

from kdcache.errors import MissingExtraError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_extra() -> None:
    """Raise MissingExtraError unless all of `PACKAGES` can be imported."""
    try:
        for name in PACKAGES:
            import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"ship needs {', '.join(PACKAGES)} ({error}); run: pip install 'kdcache[onnx]'"
        ) from error
