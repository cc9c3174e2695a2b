"""TensorRT 10 and 11 behind the seams of plans: nothing is imported before it is asked for.

The library cannot be installed from the package index alone, and wants a GPU: see ``README.md`` for what of this has
run where.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.runtime.engine import Arrays
from rtdecode.decode.runtime.plans import Hardware, Profile
from rtdecode.errors import EngineError

SUPPORTED = (10, 11)
_DEVICE = "cuda"
_WORKSPACE_BYTES = 4 << 30
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


class TensorRT:
    """Compiles and runs plans.

    Raises
    ------
    EngineError
        The library, torch, a GPU or its driver is missing, or the library's version is not supported.
    """

    def __init__(self) -> None:
        try:
            import tensorrt
            import torch
        except ImportError as error:
            raise EngineError(
                f"TensorRT cannot be imported ({error}): pip install '.[gpu,tensorrt]', or set decode.backend"
            ) from None
        # Deserialising a plan without a driver ends the process, so the driver is asked first.
        if not torch.cuda.is_available():
            raise EngineError('TensorRT wants a GPU and its driver, and torch finds none: set decode.backend = "onnx"')
        torch.cuda.init()
        if int(tensorrt.__version__.split(".")[0]) not in SUPPORTED:
            raise EngineError(
                f"TensorRT: expected version {' or '.join(map(str, SUPPORTED))}, got {tensorrt.__version__}"
            )
        self._trt = tensorrt
        self._torch = torch
        self._logger = tensorrt.Logger(tensorrt.Logger.WARNING)

    @property
    def device(self) -> str:
        """Where torch keeps the arrays, as it names it."""
        return _DEVICE

    def hardware(self) -> Hardware:
        """Describe library, GPU and driver."""
        properties = self._torch.cuda.get_device_properties(0)
        return Hardware(
            tensorrt=self._trt.__version__,
            gpu=properties.name,
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=_driver(),
        )

    def build(self, onnx: Path, profile: Profile, flags: tuple[str, ...] = ()) -> bytes:
        """Compile a network; its precision is that of the tensors in the file (strongly typed).

        Parameters
        ----------
        onnx : Path
        profile : Profile
        flags : tuple of str
            Names of ``BuilderFlag`` to set.

        Raises
        ------
        EngineError
            The parser or the compiler refuses the network; the reasons are told.
        """
        trt = self._trt
        builder = trt.Builder(self._logger)
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # version 11 knows nothing else
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(onnx)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise EngineError(f"{onnx}: TensorRT cannot read the network: {errors}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        for flag in flags:
            config.set_flag(getattr(trt.BuilderFlag, flag))
        shapes = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in profile.items():
            shapes.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(shapes)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{onnx}: TensorRT cannot compile the network; its log tells why")
        return bytes(plan)

    def load(self, plan: bytes, name: str) -> TensorRTEngine:
        """Make an engine of a plan.

        Raises
        ------
        EngineError
            The library refuses the plan, most often because another version or GPU compiled it.
        """
        engine = self._trt.Runtime(self._logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{name}: TensorRT {self._trt.__version__} refuses the plan; build it anew on this machine"
            )
        return TensorRTEngine(self._trt, self._torch, engine, name)


class TensorRTEngine:
    """One plan, ready to run on its own stream; see `Engine`."""

    def __init__(self, trt: Any, torch: Any, engine: Any, name: str) -> None:
        self._trt, self._torch, self._engine, self._name = trt, torch, engine, name
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"{name}: TensorRT found no memory on the GPU to run the plan in: free some, or use another"
            )
        self._stream = torch.cuda.Stream()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        given = {n: engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        self._inputs = tuple(n for n in names if given[n])
        self._outputs = tuple(n for n in names if not given[n])
        self._dtypes = {n: getattr(torch, _DTYPES[engine.get_tensor_dtype(n).name]) for n in names}

    @property
    def name(self) -> str:
        """For messages."""
        return self._name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return self._inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self._outputs

    def run(self, values: Mapping[str, NDArray[Any]]) -> Arrays:
        """Compute all outputs; see `Engine.run`."""
        found = self.compute({name: self._torch.from_numpy(np.array(value)) for name, value in values.items()})
        return {name: value.float().cpu().numpy() for name, value in found.items()}

    def compute(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Do as `run` does with torch tensors, which stay on the GPU.

        Raises
        ------
        EngineError
            An input is missing, unknown or outside the shapes that the plan was compiled for.
        """
        if set(values) != set(self._inputs):
            raise EngineError(f"{self._name}: expected inputs {sorted(self._inputs)}, got {sorted(values)}")
        torch, context = self._torch, self._context
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)  # which may still be computing the inputs
        for value in values.values():
            if value.device.type == _DEVICE:
                value.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            # Held until the end of this call: the library keeps addresses only.
            given = {n: v.to(_DEVICE, self._dtypes[n], non_blocking=True).contiguous() for n, v in values.items()}
            for name, value in given.items():
                if not context.set_input_shape(name, tuple(value.shape)):
                    smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
                    raise EngineError(
                        f"{self._name}: {name}: expected a shape from {tuple(smallest)} to {tuple(largest)}, "
                        f"got {tuple(value.shape)}"
                    )
                context.set_tensor_address(name, value.data_ptr())
            found = {
                name: torch.empty(tuple(context.get_tensor_shape(name)), dtype=self._dtypes[name], device=_DEVICE)
                for name in self._outputs
            }
            for name, value in found.items():
                context.set_tensor_address(name, value.data_ptr())
            if not context.execute_async_v3(self._stream.cuda_stream):
                self._stream.synchronize()  # a device that failed is an error of the process, not of the request
                raise EngineError(f"{self._name}: TensorRT could not run the plan")
        self._stream.synchronize()
        for value in found.values():
            value.record_stream(caller)
        return found


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split("Kernel Module")[-1].split() if path.exists() else []
    return words[0] if words else "unknown"
