"""A stand-in for the library TensorRT: its names and its manners, with ONNX Runtime on the CPU behind them.

Of the real thing it keeps: plans of another version are refused; varying inputs want a profile and stay within it; the
library knows addresses only and reads and writes memory when the work is done, not when it is asked for; work waits in
its stream until that stream is synchronised, and sees what other streams have computed only where it waits for them;
types of inputs are those of the file. It keeps nothing of speed, memory or numerics, torch's own operations are done at
once, and memory that is freed too early is not noticed but where `Stream.kept` is looked at.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from rtdecode.decode.runtime.engine import CRASHES_ON_HALVES

_HEAD = b"fake plan "


class DataType(Enum):
    FLOAT = np.dtype(np.float32)
    HALF = np.dtype(np.float16)
    INT64 = np.dtype(np.int64)


class Stream:
    """Work in order, done when somebody waits for it.

    Attributes
    ----------
    cuda_stream : int
        Its handle.
    kept : list
        Tensors that were recorded as used by it.
    """

    known: ClassVar[dict[int, Stream]] = {}

    def __init__(self) -> None:
        self.cuda_stream = id(self)
        self.kept: list[torch.Tensor] = []
        self._waiting: list[Callable[[], object]] = []
        Stream.known[self.cuda_stream] = self

    def add(self, work: Callable[[], object]) -> None:
        """Put work behind what is there."""
        self._waiting.append(work)

    def wait_stream(self, other: Stream) -> None:
        """Do nothing further before what is now in another stream is done."""
        due = len(other._waiting)
        self.add(lambda: other._do(due))

    def synchronize(self) -> None:
        """Do all that waits."""
        self._do(len(self._waiting))

    def _do(self, n: int) -> None:
        for work in [self._waiting.pop(0) for _ in range(min(n, len(self._waiting)))]:
            work()


class Library:
    """What `import tensorrt` gives.

    Parameters
    ----------
    version : str
        Plans of another version are refused, as the real one does.
    error : float
        Added to every output: a compiler that is wrong.
    typed : bool
        Whether strong typing is a flag (version 10) or all there is (11).
    """

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(REFIT="refit")

    def __init__(self, version: str = "10.14.1", *, error: float = 0.0, typed: bool = True) -> None:
        self.__version__ = version
        self.error = error
        self.flags: list[str] = []
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1) if typed else SimpleNamespace()
        self.Logger = _Logger
        self.Builder = lambda _: _Builder(self)
        self.OnnxParser = lambda network, _: _Parser(network)
        self.Runtime = lambda _: _Runtime(self)


class _Logger:
    WARNING = "warning"

    def __init__(self, level: str) -> None:
        self.level = level


class _Parser:
    def __init__(self, network: dict[str, Any]) -> None:
        self._network = network
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        try:
            self._network["model"] = onnx.load(path).SerializeToString()
        except Exception:
            self.num_errors = 1
        return self.num_errors == 0

    def get_error(self, _: int) -> str:
        return "no network in it"


class _Config:
    def __init__(self, library: Library) -> None:
        self._library = library
        self.profile: dict[str, Any] = {}

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        assert pool == "workspace"
        assert size > 0

    def set_flag(self, flag: str) -> None:
        self._library.flags.append(flag)

    def add_optimization_profile(self, profile: _Profile) -> None:
        self.profile = profile.shapes


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, smallest: Any, usual: Any, largest: Any) -> None:
        self.shapes[name] = (smallest, usual, largest)


class _Builder:
    def __init__(self, library: Library) -> None:
        self._library = library

    def create_network(self, flags: int) -> dict[str, Any]:
        assert flags == (2 if hasattr(self._library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else 0)
        return {}

    def create_builder_config(self) -> _Config:
        return _Config(self._library)

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: dict[str, Any], config: _Config) -> bytes | None:
        model = onnx.load_from_string(network["model"])
        varying = {i.name for i in model.graph.input if any(d.dim_param for d in i.type.tensor_type.shape.dim)}
        if varying != set(config.profile):
            return None  # a varying input without a profile
        profile = repr({n: [tuple(s) for s in shapes] for n, shapes in config.profile.items()})
        model.graph.initializer.append(numpy_helper.from_array(np.frombuffer(profile.encode(), np.uint8), "profile"))
        return _HEAD + self._library.__version__.encode() + b"\n" + model.SerializeToString()


class _Runtime:
    def __init__(self, library: Library) -> None:
        self._library = library

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        head, _, body = plan.partition(b"\n")
        if head != _HEAD + self._library.__version__.encode():
            return None
        return _Engine(body, self._library.error)


class _Engine:
    def __init__(self, body: bytes, error: float) -> None:
        model = onnx.load_from_string(body)
        profile = next(i for i in model.graph.initializer if i.name == "profile")
        self.profile: dict[str, Any] = eval(numpy_helper.to_array(profile).tobytes().decode())
        self.session = onnxruntime.InferenceSession(body, disabled_optimizers=[CRASHES_ON_HALVES])
        self.error = error
        self._values = {v.name: v for v in (*self.session.get_inputs(), *self.session.get_outputs())}
        self._given = {v.name for v in self.session.get_inputs()}
        self.num_io_tensors = len(self._values)

    def get_tensor_name(self, i: int) -> str:
        return list(self._values)[i]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self._given else "output"

    def get_tensor_dtype(self, name: str) -> DataType:
        kinds = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(int64)": DataType.INT64}
        return kinds[self._values[name].type]

    def get_tensor_profile_shape(self, name: str, _: int) -> Any:
        return self.profile[name]

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name in self._engine.profile:
            smallest, _, largest = self._engine.profile[name]
            if len(shape) != len(smallest) or any(
                not low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
            ):
                return False
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        given = {n: np.ones(s, self._engine.get_tensor_dtype(n).value) for n, s in self._shapes.items()}
        (found,) = self._engine.session.run([name], given)
        return found.shape

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        Stream.known[stream].add(lambda: self._execute(shapes, addresses))
        return True

    def _execute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        given = {}
        for name, shape in shapes.items():
            dtype = self._engine.get_tensor_dtype(name).value
            size = int(np.prod(shape)) * dtype.itemsize
            given[name] = np.frombuffer(ctypes.string_at(addresses[name], size), dtype).reshape(shape)
        names = [v.name for v in self._engine.session.get_outputs()]
        for name, value in zip(names, self._engine.session.run(names, given), strict=True):
            out = np.ascontiguousarray(value + value.dtype.type(self._engine.error))
            ctypes.memmove(addresses[name], out.tobytes(), out.nbytes)


def install(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    """Put the stand-in where the runtime looks for the library, and the CPU where it looks for a GPU."""
    from rtdecode.decode.runtime import tensorrt

    current = [Stream()]

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        current.append(stream)
        try:
            yield
        finally:
            current.pop()

    monkeypatch.setitem(__import__("sys").modules, "tensorrt", library)
    monkeypatch.setattr(tensorrt, "_DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: stream.kept.append(tensor))
    properties = SimpleNamespace(name="No GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
