"""A process group of one process, for tests of what runs under DistributedDataParallel."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def process_group(folder: Path) -> Iterator[None]:
    """A group of gloo's while the block runs; let what is spread over it end within the block.

    A DistributedDataParallel that is freed after its group joins gloo's threads while it holds
    Python's lock, for which such a thread may wait: now and then neither goes on.
    """
    store = torch.distributed.FileStore(str(folder / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        gc.collect()
        torch.distributed.destroy_process_group()
