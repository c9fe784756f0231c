"""Ship a student: an ONNX model, in int8 if wanted, that runs without torch and transformers."""

from kdcache.shipping.run import ship

__all__ = ["ship"]
