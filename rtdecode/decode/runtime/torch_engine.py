"""A part of a stage run by torch, on a GPU as a CUDA graph where it can be captured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtdecode.decode.runtime.engine import Arrays
from rtdecode.decode.runtime.parts import Part
from rtdecode.errors import EngineError

_WARM_UPS = 3
_DEVICE_FAULT = "CUDA error"


class TorchEngine:
    """A part on a device; see `Engine`.

    Parameters
    ----------
    part : Part
        Its module is moved to the device.
    device : str
    dtype : torch.dtype
        Of floating inputs.
    graph : bool
        Whether a GPU replays the part as a graph, one for each shape of the inputs.

    Attributes
    ----------
    part : Part
    """

    def __init__(self, part: Part, *, device: str, dtype: torch.dtype = torch.float32, graph: bool = True) -> None:
        self.part = part
        self._module = part.module.to(device).eval()
        self._device = torch.device(device)
        self._dtype = dtype
        self._graph = graph and self._device.type == "cuda"
        self._graphs: dict[tuple[tuple[int, ...], ...], _Graph] = {}

    @property
    def name(self) -> str:
        """For messages."""
        return self.part.name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(self.part.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.part.outputs

    def run(self, values: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute all outputs; see `Engine.run`."""
        found = self.compute({name: torch.from_numpy(np.array(value)) for name, value in values.items()})
        return {name: value.float().cpu().numpy() for name, value in found.items()}

    def compute(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do as `run` does with tensors, which stay on the device.

        Raises
        ------
        EngineError
            An input is missing or unknown, or torch refuses its shape.
        RuntimeError
            The device failed: nothing works in this process any more, and it is to be replaced.
        """
        if set(values) != set(self.inputs):
            raise EngineError(f"{self.name}: expected inputs {sorted(self.inputs)}, got {sorted(values)}")
        given = [self._placed(values[name]) for name in self.inputs]
        try:
            with torch.no_grad():
                found = self._replay(given) if self._graph else self._module(*given)
        except RuntimeError as error:
            if _DEVICE_FAULT in str(error):
                raise
            raise EngineError(f"{self.name}: {error}") from None
        return dict(zip(self.outputs, found, strict=True))

    def _placed(self, value: Tensor) -> Tensor:
        dtype = self._dtype if value.is_floating_point() else value.dtype
        return value.to(self._device, dtype, non_blocking=True)

    def _replay(self, given: list[Tensor]) -> list[Tensor]:
        shapes = tuple(tuple(value.shape) for value in given)
        graph = self._graphs.get(shapes)
        if graph is None:
            graph = self._graphs[shapes] = _Graph(self._module, given)
        return graph.replay(given)


class _Graph:
    """A module captured for inputs of fixed shapes."""

    def __init__(self, module: torch.nn.Module, given: list[Tensor]) -> None:
        self._given = [value.clone() for value in given]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                module(*self._given)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Thread-local: other threads of the process may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._found = module(*self._given)

    def replay(self, given: list[Tensor]) -> list[Tensor]:
        for own, value in zip(self._given, given, strict=True):
            own.copy_(value)
        self._graph.replay()
        return [value.clone() for value in self._found]
