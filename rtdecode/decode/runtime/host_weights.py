"""Weights that wait in the host's memory and are copied to the device for as long as they are used (torch)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class HostWeights:
    """Weights of modules, which may share some.

    They do not change: to free the device, its copies are let go, and nothing is copied back.

    Parameters
    ----------
    modules : iterable of Module
        On the host.
    device : str
        As torch names it. For a GPU, weights are kept where it can read them by itself.
    """

    def __init__(self, modules: Iterable[nn.Module], device: str) -> None:
        self._device = torch.device(device)
        tensors: dict[int, Tensor] = {}
        for module in modules:
            tensors |= {id(one): one for one in (*module.parameters(), *module.buffers())}
        self._held = [(one, self._kept(one.data)) for one in tensors.values()]
        self.move(False)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(own.numel() * own.element_size() for _, own in self._held)

    def move(self, there: bool) -> None:
        """Copy the weights to the device, or let its copies go.

        Raises
        ------
        RuntimeError
            The device has no memory left.
        """
        for one, own in self._held:
            one.data = own.to(self._device, non_blocking=True) if there else own
        if not there and self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _kept(self, weights: Tensor) -> Tensor:
        return weights.pin_memory() if self._device.type == "cuda" else weights
