"""What torch runs on a device: a part of a stage, or a function of several; on a GPU as a CUDA graph if it can be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
_IN_A_GRAPH: ContextVar[bool] = ContextVar("in_a_graph", default=False)
"""Whether what runs is part of a graph that is made, and must make none of its own."""


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
    fetch : callable or None
        Brings the module to the device before each call; None: it is moved at once, and stays. With it there is no
        graph, which would read the weights where they were.

    Attributes
    ----------
    part : Part
    """

    def __init__(
        self,
        part: Part,
        *,
        device: str,
        dtype: torch.dtype = torch.float32,
        graph: bool = True,
        fetch: Callable[[], None] | None = None,
    ) -> None:
        self.part = part
        self._fetch = fetch
        self._device = torch.device(device)
        self._dtype = dtype
        module = (part.module.to(device) if fetch is None else part.module).eval()
        wanted = graph and fetch is None and self._device.type == "cuda"
        self._graph = Graph(module, part.name, wanted=wanted)

    @property
    def fallback(self) -> str:
        """Why it is not run as a graph although it was to be; empty where it is."""
        return self._graph.fallback

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
        if self._fetch is not None:
            self._fetch()
        found = self._graph(*(self._placed(values[name]) for name in self.inputs))
        return dict(zip(self.outputs, found, strict=True))

    def _placed(self, value: Tensor) -> Tensor:
        dtype = self._dtype if value.is_floating_point() else value.dtype
        return value.to(self._device, dtype, non_blocking=True)


class Graph:
    """A function of tensors to tensors, replayed as a CUDA graph, one for each shape of what it is given.

    Parameters
    ----------
    function : callable
        Of tensors on a GPU to a sequence of such. Its numbers that are not tensors are those of the first call.
    name : str
        For messages.
    wanted : bool
        Whether a graph is made at all; within another graph none is.

    Attributes
    ----------
    fallback : str
        Why no graph is made although it is wanted; empty where one is.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], name: str, *, wanted: bool) -> None:
        self._function = function
        self._name = name
        self._wanted = wanted
        self._captured: dict[tuple[tuple[int, ...], ...], _Captured] = {}
        self.fallback = ""

    def __call__(self, *given: Tensor) -> Sequence[Tensor]:
        """Compute.

        Raises
        ------
        EngineError
            Torch refuses a shape.
        RuntimeError
            As of `TorchEngine.compute`.
        """
        if _IN_A_GRAPH.get():
            return self._function(*given)
        try:
            return self._computed(given)
        except RuntimeError as error:
            if any(words in str(error) for words in _DEVICE_FAULTS):
                raise
            raise EngineError(f"{self._name}: {error}") from None

    def _computed(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            try:
                return self._run(given)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
            return self._run(given)

    def _run(self, given: Sequence[Tensor]) -> Sequence[Tensor]:
        if not self._wanted:
            return self._function(*given)
        shapes = tuple(tuple(value.shape) for value in given)
        captured = self._captured.get(shapes)
        if captured is None:
            try:
                captured = self._captured[shapes] = _Captured(self._function, given)
            except _NotCapturedError as error:
                self._wanted, self.fallback = False, f"{self._name} is run step by step, not as a CUDA graph: {error}"
                _log.warning("%s", self.fallback)
                self._captured.clear()
                return self._function(*given)
        return captured.replay(given)


@contextmanager
def _in_a_graph() -> Iterator[None]:
    token = _IN_A_GRAPH.set(True)
    try:
        yield
    finally:
        _IN_A_GRAPH.reset(token)


class _NotCapturedError(Exception):
    """The function itself runs; the device is well."""


class _Captured:
    """A function captured for inputs of fixed shapes."""

    def __init__(self, function: Callable[..., Sequence[Tensor]], given: Sequence[Tensor]) -> None:
        self._given = [value.clone() for value in given]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with _in_a_graph(), torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                function(*self._given)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        try:
            # Thread-local: other threads of the process may use the GPU meanwhile.
            with _in_a_graph(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._found = function(*self._given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize()  # a device that failed fails here again
            raise _NotCapturedError(str(error).partition("\n")[0]) from None

    def replay(self, given: Sequence[Tensor]) -> list[Tensor]:
        for own, value in zip(self._given, given, strict=True):
            own.copy_(value)
        self._graph.replay()
        return [value.clone() for value in self._found]
