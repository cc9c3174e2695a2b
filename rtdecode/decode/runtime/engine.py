"""The seam to whatever runs a network: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from rtdecode.errors import EngineError

Arrays = dict[str, NDArray[Any]]

_RUNTIME = onnxruntime.capi.onnxruntime_pybind11_state
_FAILURES: tuple[type[Exception], ...] = (
    _RUNTIME.EPFail,
    _RUNTIME.Fail,
    _RUNTIME.InvalidArgument,
    _RUNTIME.InvalidGraph,
    _RUNTIME.InvalidProtobuf,
    _RUNTIME.NoSuchFile,
    _RUNTIME.NotImplemented,
    _RUNTIME.RuntimeException,
    ValueError,
    RuntimeError,
)
CRASHES_ON_HALVES = "MatmulTransposeFusion"
"""ONNX Runtime 1.32 ends the process where this meets attention in float16."""
LARGE_BYTES = 2**30
"""Weights above this are kept but once, in float32 also where the file has float16: of 4.4 GB in float16, ONNX Runtime
takes 10. Otherwise it would hold them as read and laid out anew besides, and keep the memory of every call."""


class Engine(Protocol):
    """One network, ready to run."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        ...

    def run(self, values: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute all outputs.

        Parameters
        ----------
        values : mapping of str to ndarray
            One array per input, each of the type and shape that the network wants; single precision also where the
            network wants half.

        Returns
        -------
        dict of str to ndarray
            Half precision comes as single.

        Raises
        ------
        EngineError
            An input is missing, unknown, or of a wrong type or shape.
        """
        ...


class OnnxEngine:
    """A network run by ONNX Runtime on the CPU.

    Parameters
    ----------
    path : Path
        ONNX file.
    name : str
        For messages.
    threads : int
        Threads within one operation; small networks want one.

    Raises
    ------
    EngineError
        The file is missing or not a network that this ONNX Runtime can run.
    """

    def __init__(self, path: Path, *, name: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        disabled = [CRASHES_ON_HALVES]
        weights = path.with_name(f"{path.name}.data")
        if weights.exists() and weights.stat().st_size > LARGE_BYTES:
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # these keep what one call needed
            disabled.append("ConstantFolding")
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
            )
        except _FAILURES as error:
            raise EngineError(f"{name}: {path} cannot be loaded: {error}") from None
        self._name = name
        self._halves = {spec.name for spec in self._session.get_inputs() if spec.type == "tensor(float16)"}

    @property
    def name(self) -> str:
        """For messages."""
        return self._name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(spec.name for spec in self._session.get_inputs())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(spec.name for spec in self._session.get_outputs())

    def run(self, values: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute all outputs; see `Engine.run`."""
        if set(values) != set(self.inputs):
            raise EngineError(f"{self._name}: expected inputs {sorted(self.inputs)}, got {sorted(values)}")
        try:
            results = self._session.run(None, {name: self._given(name, value) for name, value in values.items()})
        except _FAILURES as error:
            raise EngineError(f"{self._name}: {error}") from None
        return {name: _single(np.asarray(result)) for name, result in zip(self.outputs, results, strict=True)}

    def _given(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        return value.astype(np.float16) if name in self._halves and value.dtype == np.float32 else value


def _single(value: NDArray[Any]) -> NDArray[Any]:
    return value.astype(np.float32) if value.dtype == np.float16 else value
