"""What whoever compiles and runs plans must do: TensorRT over a stand-in library and, where there is one, for real."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from rtdecode.decode.runtime.plans import Profile
from rtdecode.errors import EngineError

torch = pytest.importorskip("torch")

from rtdecode.decode.runtime.tensorrt import TensorRT  # noqa: E402
from tests.fake_tensorrt import Library, Stream, install  # noqa: E402

PROFILE: Profile = {name: ((1, 3), (1, 3), (4, 3)) for name in "ab"}
REAL = importlib.util.find_spec("tensorrt") is not None and torch.cuda.is_available()


@pytest.fixture(
    params=[
        "version 10",
        "version 11",
        pytest.param("real", marks=pytest.mark.skipif(not REAL, reason="TensorRT or a GPU is not there")),
    ]
)
def builder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    if request.param != "real":
        ten = request.param == "version 10"
        install(monkeypatch, Library("10.9.0" if ten else "11.4.0", typed=ten))
    return TensorRT()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["total"])],
        "sum",
        [helper.make_tensor_value_info(name, float32, ["batch", 3]) for name in "ab"],
        [helper.make_tensor_value_info("total", float32, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "sum.onnx")
    return tmp_path / "sum.onnx"


@pytest.mark.parametrize("batch", [1, 4])
def test_a_plan_computes_what_the_network_says(builder: TensorRT, network: Path, batch: int) -> None:
    engine = builder.load(builder.build(network, PROFILE), "sum")
    assert (engine.name, set(engine.inputs), engine.outputs) == ("sum", {"a", "b"}, ("total",))
    a = np.random.default_rng(batch).standard_normal((batch, 3)).astype(np.float32)
    np.testing.assert_allclose(engine.run({"a": a, "b": 2 * a})["total"], 3 * a, rtol=1e-5)


def test_a_shape_outside_the_profile_is_told_with_its_limits(builder: TensorRT, network: Path) -> None:
    engine = builder.load(builder.build(network, PROFILE), "sum")
    wide = np.zeros((5, 3), np.float32)
    with pytest.raises(EngineError, match=r"expected a shape from \(1, 3\) to \(4, 3\), got \(5, 3\)"):
        engine.run({"a": wide, "b": wide})


def test_wrong_names_are_refused(builder: TensorRT, network: Path) -> None:
    engine = builder.load(builder.build(network, PROFILE), "sum")
    with pytest.raises(EngineError, match="expected inputs"):
        engine.run({"a": np.zeros((1, 3), np.float32)})


def test_what_is_no_network_is_refused(builder: TensorRT, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(EngineError, match="cannot read the network"):
        builder.build(tmp_path / "bad.onnx", PROFILE)


def test_what_is_no_plan_is_refused(builder: TensorRT) -> None:
    with pytest.raises(EngineError, match="refuses the plan"):
        builder.load(b"no plan", "sum")


def test_a_varying_input_wants_a_profile(builder: TensorRT, network: Path) -> None:
    with pytest.raises(EngineError, match="cannot compile"):
        builder.build(network, {})


def test_hardware_is_told(builder: TensorRT) -> None:
    said = builder.hardware()
    assert said.tensorrt.split(".")[0] in ("10", "11")
    assert all((said.gpu, said.compute_capability, said.driver))


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Library("8.6.1"))
    with pytest.raises(EngineError, match=r"expected version 10 or 11, got 8\.6\.1"):
        TensorRT()


def test_without_a_gpu_nothing_of_the_library_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Library())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="wants a GPU"):
        TensorRT()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="the library is there")
def test_without_the_library_the_remedy_is_told() -> None:
    with pytest.raises(EngineError, match=r"pip install '\.\[gpu,tensorrt\]'"):
        TensorRT()


def test_a_plan_waits_for_what_computes_its_inputs(builder: TensorRT, network: Path) -> None:
    engine = builder.load(builder.build(network, PROFILE), "sum")
    a = torch.zeros((2, 3), device=builder.device)
    if builder.device == "cuda":
        torch.cuda._sleep(50_000_000)
        a.add_(2)
    else:
        torch.cuda.current_stream().add(lambda: a.add_(2))
    found = engine.compute({"a": a, "b": torch.ones((2, 3), device=builder.device)})["total"]
    assert found.cpu().tolist() == [[3.0] * 3] * 2


def test_memory_is_kept_for_both_streams(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Library())
    builder = TensorRT()
    engine = builder.load(builder.build(network, PROFILE), "sum")
    caller = torch.cuda.current_stream()
    given = {name: torch.ones((1, 3)) for name in "ab"}
    found = engine.compute(given)["total"]
    assert any(kept is found for kept in caller.kept)
    (own,) = [stream for stream in Stream.known.values() if any(kept is given["a"] for kept in stream.kept)]
    assert own is not caller
    assert any(kept is given["b"] for kept in own.kept)
