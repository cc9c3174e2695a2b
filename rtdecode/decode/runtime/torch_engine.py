"""A part of a stage run by torch, on a GPU as a CUDA graph where it can be captured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtdecode.decode.runtime.engine import Arrays
from rtdecode.decode.runtime.parts import Part
from rtdecode.errors import EngineError

_log = logging.getLogger(__name__)
_WARM_UPS = 3
_DEVICE_FAULTS = ("CUDA error", "CUDNN_STATUS", "cuDNN error", "CUBLAS_STATUS", "out of memory")
"""What the words of an error hold that is the device's, whatever it was given."""


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
    fallback : str
        Why it is not run as a graph although it was to be; empty where it is.
    """

    def __init__(self, part: Part, *, device: str, dtype: torch.dtype = torch.float32, graph: bool = True) -> None:
        self.part = part
        self._module = part.module.to(device).eval()
        self._device = torch.device(device)
        self._dtype = dtype
        self._graph = graph and self._device.type == "cuda"
        self._graphs: dict[tuple[tuple[int, ...], ...], _Graph] = {}
        self.fallback = ""

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
            The device failed, or has no memory left although all that is not in use was given back: what is in this
            process does not work any more, and it is to be replaced.
        """
        if set(values) != set(self.inputs):
            raise EngineError(f"{self.name}: expected inputs {sorted(self.inputs)}, got {sorted(values)}")
        given = [self._placed(values[name]) for name in self.inputs]
        try:
            found = self._computed(given)
        except RuntimeError as error:
            if any(words in str(error) for words in _DEVICE_FAULTS):
                raise
            raise EngineError(f"{self.name}: {error}") from None
        return dict(zip(self.outputs, found, strict=True))

    def _computed(self, given: list[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            try:
                return self._run(given)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
            return self._run(given)

    def _run(self, given: list[Tensor]) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self._replay(given) if self._graph else self._module(*given)
        return found

    def _placed(self, value: Tensor) -> Tensor:
        dtype = self._dtype if value.is_floating_point() else value.dtype
        return value.to(self._device, dtype, non_blocking=True)

    def _replay(self, given: list[Tensor]) -> Sequence[Tensor]:
        shapes = tuple(tuple(value.shape) for value in given)
        graph = self._graphs.get(shapes)
        if graph is None:
            try:
                graph = self._graphs[shapes] = _Graph(self._module, given)
            except _NotCapturedError as error:
                self._graph, self.fallback = False, f"{self.name} is run step by step, not as a CUDA graph: {error}"
                _log.warning("%s", self.fallback)
                self._graphs.clear()
                found: Sequence[Tensor] = self._module(*given)
                return found
        return graph.replay(given)


class _NotCapturedError(Exception):
    """The part itself runs; the device is well."""


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
        try:
            # Thread-local: other threads of the process may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._found = module(*self._given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize()  # a device that failed fails here again
            raise _NotCapturedError(str(error).partition("\n")[0]) from None

    def replay(self, given: list[Tensor]) -> list[Tensor]:
        for own, value in zip(self._given, given, strict=True):
            own.copy_(value)
        self._graph.replay()
        return [value.clone() for value in self._found]
