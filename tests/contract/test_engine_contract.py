"""What every engine must do: ONNX Runtime and the fake that tests use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtdecode.decode.runtime.engine import Engine, OnnxEngine
from rtdecode.errors import EngineError
from rtdecode.testing import check_engine
from tests.decode_small import FakeEngine


def write_sum(path: Path, kind: str = "FLOAT") -> None:
    onnx = pytest.importorskip("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.DataType.Value(kind)
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["total"])],
        "sum",
        [helper.make_tensor_value_info(name, float32, ["batch", 3]) for name in "ab"],
        [helper.make_tensor_value_info("total", float32, ["batch", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture(params=["onnx", "fake"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "fake":
        return FakeEngine()
    write_sum(tmp_path / "sum.onnx")
    return OnnxEngine(tmp_path / "sum.onnx", name="onnx/sum", threads=1)


def test_an_engine_keeps_the_contract(engine: Engine) -> None:
    a = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    check_engine(engine, {"a": a, "b": 2 * a})
    np.testing.assert_allclose(engine.run({"a": a, "b": 2 * a})["total"], 3 * a, rtol=1e-6)


@pytest.mark.parametrize(
    "bad", [np.ones((1, 4), dtype=np.float32), np.ones((1, 3), dtype=np.float64), np.ones(3, dtype=np.float32)]
)
def test_wrong_types_and_shapes_are_refused(engine: Engine, bad: np.ndarray) -> None:
    with pytest.raises(EngineError, match=engine.name):
        engine.run({"a": bad, "b": np.ones((1, 3), dtype=np.float32)})


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be loaded"):
        OnnxEngine(tmp_path / "none.onnx", name="none", threads=1)
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(EngineError, match="cannot be loaded"):
        OnnxEngine(tmp_path / "bad.onnx", name="bad", threads=1)


def test_a_file_in_half_precision_takes_and_gives_single(tmp_path: Path) -> None:
    write_sum(tmp_path / "half.onnx", "FLOAT16")
    engine = OnnxEngine(tmp_path / "half.onnx", name="half", threads=1)
    a = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    for given in (a, a.astype(np.float16)):
        total = engine.run({"a": given, "b": given})["total"]
        assert total.dtype == np.float32
        np.testing.assert_array_equal(total, 2 * a.astype(np.float16).astype(np.float32))
    with pytest.raises(EngineError):
        engine.run({"a": a.astype(np.int64), "b": a})


def test_large_weights_that_are_not_copied_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    helper, half = onnx.helper, onnx.TensorProto.FLOAT16
    rng, path = np.random.default_rng(1), tmp_path / "layer.onnx"
    weight = (rng.standard_normal((200, 30)) / 14).astype(np.float16)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", half, ["batch", 200])],
        [helper.make_tensor_value_info("y", half, ["batch", 30])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="layer.onnx.data")
    x = rng.standard_normal((3, 200)).astype(np.float16).astype(np.float32)
    for limit in (2**30, 0):
        monkeypatch.setattr("rtdecode.decode.runtime.engine.LARGE_BYTES", limit)
        found = OnnxEngine(path, name="layer", threads=1).run({"x": x})["y"]
        np.testing.assert_allclose(found, x @ weight.astype(np.float32), rtol=0, atol=5e-3)
