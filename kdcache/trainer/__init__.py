"""Train students from a cache."""

from kdcache.trainer.train import TrainResult, train

__all__ = ["TrainResult", "train"]
