"""Parts run by torch, and graphs of several; where the device is in trouble, too: no capture, no memory, faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtdecode.check import _ready  # noqa: E402
from rtdecode.decode.pipeline import TellsFallbacks  # noqa: E402
from rtdecode.decode.runtime.parts import Part  # noqa: E402
from rtdecode.decode.runtime.torch_engine import Graph, TorchEngine  # noqa: E402
from rtdecode.errors import EngineError  # noqa: E402
from tests.decode_small import tiny_decoder  # noqa: E402

VALUES = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


class Double(torch.nn.Module):
    """Doubles, after it has failed as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return (x * 2,)


class Device:
    """Stands in for CUDA: counts captures and fails as told; a replay gives again what the capture gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capture_error: Exception | None = None
        self.sticky: Exception | None = None
        self.emptied = 0
        self.captures = 0
        stream = SimpleNamespace(wait_stream=lambda _: None)
        fakes = {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": self._entered,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph": self._capture,
            "synchronize": self._synchronize,
            "empty_cache": self._empty,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextmanager
    def _entered(self, _: object) -> Iterator[None]:
        yield

    @contextmanager
    def _capture(self, _: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.captures += 1
        yield
        error, self.capture_error = self.capture_error, None
        if error is not None:
            raise error

    def _synchronize(self) -> None:
        if self.sticky is not None:
            raise self.sticky

    def _empty(self) -> None:
        self.emptied += 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def engine_of(module: Double, *, graph: bool = True) -> TorchEngine:
    part = Part(name="prior", module=module, inputs={"x": ["batch", 3]}, outputs=("y",))
    engine = TorchEngine(part, device="cpu")
    engine._graph._wanted = graph  # which only a GPU would have
    return engine


def sampler_of(engine: TorchEngine, steps: int) -> Graph:
    """A function that calls a part again and again, as samplers do."""

    def sample(x: Any) -> Any:
        for _ in range(steps):
            x = engine.compute({"x": x})["y"]
        return [x]

    return Graph(sample, "sampler", wanted=True)


def test_a_graph_that_cannot_be_captured_is_run_step_by_step_and_told(device: Device) -> None:
    device.capture_error = RuntimeError("CUDA error: operation not permitted when stream is capturing\nadvice")
    engine = engine_of(Double())
    for _ in range(2):
        np.testing.assert_array_equal(engine.run(VALUES)["y"], 2 * VALUES["x"])
    assert device.captures == 1
    assert engine.fallback == (
        "prior is run step by step, not as a CUDA graph: CUDA error: operation not permitted when stream is capturing"
    )


def test_a_graph_that_is_captured_is_no_fallback(device: Device) -> None:
    module = Double()
    engine = engine_of(module)
    np.testing.assert_array_equal(engine.run(VALUES)["y"], 2 * VALUES["x"])
    calls = module.calls
    engine.run(VALUES)
    assert module.calls == calls  # replayed
    assert engine.fallback == ""


def test_a_sampler_is_one_graph_and_its_parts_make_none_of_their_own(device: Device) -> None:
    module = Double()
    sampler, x = sampler_of(engine_of(module), 2), torch.from_numpy(VALUES["x"])
    np.testing.assert_array_equal(sampler(x)[0], 4 * VALUES["x"])
    assert device.captures == 1
    calls = module.calls
    sampler(x)
    assert module.calls == calls  # replayed
    sampler(x[:1])
    assert device.captures == 2  # another shape
    assert sampler.fallback == ""


def test_a_sampler_that_cannot_be_captured_leaves_graphs_to_its_parts(device: Device) -> None:
    device.capture_error = RuntimeError("operation not permitted when stream is capturing")
    engine = engine_of(Double())
    sampler, x = sampler_of(engine, 1), torch.from_numpy(VALUES["x"])
    np.testing.assert_array_equal(sampler(x)[0], 2 * VALUES["x"])
    assert sampler.fallback.startswith("sampler is run step by step, not as a CUDA graph: operation not permitted")
    assert (engine.fallback, device.captures) == ("", 2)


def test_a_device_that_failed_while_it_captured_is_no_fallback(device: Device) -> None:
    device.capture_error = RuntimeError("CUDA error: an illegal memory access was encountered")
    device.sticky = RuntimeError("CUDA error: an illegal memory access was encountered")
    engine = engine_of(Double())
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.run(VALUES)
    assert engine.fallback == ""


@pytest.mark.parametrize("graph", [True, False])
def test_memory_that_is_not_in_use_is_given_back_before_it_counts_as_gone(device: Device, graph: bool) -> None:
    module = Double()
    module.errors = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]
    engine = engine_of(module, graph=graph)
    np.testing.assert_array_equal(engine.run(VALUES)["y"], 2 * VALUES["x"])
    assert device.emptied == 1
    module.errors = [torch.OutOfMemoryError("CUDA out of memory")] * 2
    with pytest.raises(torch.OutOfMemoryError):  # of the process, not of this trial
        engine_of(module, graph=graph).run(VALUES)


@pytest.mark.parametrize(
    ("words", "of_the_trial"),
    [
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("CUDNN_STATUS_MAPPING_ERROR", False),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x4)", True),
    ],
)
def test_what_is_the_devices_is_told_from_what_is_the_trials(device: Device, words: str, of_the_trial: bool) -> None:
    module = Double()
    module.errors = [RuntimeError(words)]
    engine = engine_of(module, graph=False)
    with pytest.raises(EngineError if of_the_trial else RuntimeError, match=words.split(" ")[0]) as caught:
        engine.run(VALUES)
    assert isinstance(caught.value, EngineError) == of_the_trial


def test_check_tells_of_fallbacks() -> None:
    decoder = tiny_decoder()
    assert decoder.fallbacks == ()
    assert not isinstance(decoder._pipeline, TellsFallbacks)
    why = "unclip is run step by step, not as a CUDA graph: the reason"
    decoder._pipeline.fallbacks = (why,)
    assert decoder.fallbacks == (why,)
    assert _ready(decoder).endswith(f"; {why}")
