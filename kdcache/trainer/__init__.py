"""Train students from a cache."""

from kdcache.trainer.result import TrainResult
from kdcache.trainer.train import train

__all__ = ["TrainResult", "train"]
