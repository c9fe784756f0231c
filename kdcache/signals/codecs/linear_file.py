"""Linear layers of a teacher that a cache keeps in a file, because a signal is decoded by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import safetensors.torch
import torch

from kdcache.errors import DamageError

Linear = tuple[torch.Tensor, torch.Tensor | None]
"""Weight [out, in] and bias [out], or None."""


@dataclass(frozen=True, eq=False)
class LinearFile:
    """The linear layers of a file under `files/`, read when one is first asked for.

    Attributes:
        read: gives the bytes of a file by its name.
        file: its name.
        sizes: [out, in] of each layer, by its name; "" is a name.

    Raises DamageError then, if they are not what was stored.
    """

    read: Callable[[str], bytes]
    file: str
    sizes: Mapping[str, tuple[int, int]]

    @cached_property
    def layers(self) -> dict[str, Linear]:
        """Weight and bias of each layer."""
        try:
            found = safetensors.torch.load(self.read(self.file))
            layers = {n: (found[_key(n, "weight")], found.get(_key(n, "bias"))) for n in self.sizes}
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise DamageError(f"files/{self.file} is damaged: {error}") from error
        for name, size in self.sizes.items():
            weight, bias = layers[name]
            if tuple(weight.shape) != size or (bias is not None and bias.shape != size[:1]):
                raise DamageError(
                    f"files/{self.file} is damaged: {_key(name, 'weight')} is "
                    f"{tuple(weight.shape)}, not {size}"
                )
        return layers

    def on(self, device: torch.device, name: str = "", dtype: torch.dtype | None = None) -> Linear:
        """A layer on a device, copied there once; `dtype` None: what products run in there."""
        if (device, name, dtype) not in self._copies:
            weight, bias = self.layers[name]
            kind = dtype or (torch.float32 if device.type == "cpu" else weight.dtype)
            self._copies[device, name, dtype] = (
                weight.to(device, kind),
                None if bias is None else bias.to(device, kind),
            )
        return self._copies[device, name, dtype]

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, str, torch.dtype | None], Linear]:
        return {}


def save(layers: Mapping[str, Linear]) -> bytes:
    """The file of some layers."""
    tensors = {}
    for name, (weight, bias) in layers.items():
        tensors[_key(name, "weight")] = weight.contiguous()
        if bias is not None:
            tensors[_key(name, "bias")] = bias.contiguous()
    return safetensors.torch.save(tensors)


def most_bytes(sizes: Mapping[str, tuple[int, int]]) -> int:
    """The most that the file takes: weights and biases in float32, and the header."""
    return sum(4 * out * (into + 1) + 256 for out, into in sizes.values())


def _key(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part
