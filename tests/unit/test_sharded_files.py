"""Checkpoints that are folders: of DeepSpeed, and of torch.distributed.checkpoint as torch itself writes them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch.distributed.checkpoint as dcp  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from engines.importing.mindeye2_files import MindEye2Files, draft_mindeye2  # noqa: E402
from engines.importing.weight_files import read  # noqa: E402
from rtdecode.__main__ import main  # noqa: E402
from rtdecode.demo.processes import free_port  # noqa: E402
from rtdecode.errors import CheckpointError  # noqa: E402
from tests.published import State, mindeye2_state, save_last  # noqa: E402

STATE = {"a.weight": torch.arange(12.0).reshape(4, 3), "b": torch.arange(5), "half": torch.ones(3).half()}
FSDP = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
if dist.get_rank() == 0:
    torch.save(network.state_dict(), sys.argv[1] + "/whole.pth")
fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
model, optimizer = get_state_dict(network, torch.optim.AdamW(network.parameters()))
dcp.save({"model": model, "optim": optimizer, "epoch": 3}, checkpoint_id=sys.argv[1] + "/shards")
dist.destroy_process_group()
"""


def save_distributed(folder: Path, content: dict[str, Any]) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.warn", lambda *_, **__: None)  # torch's own, about a single process
        dcp.save(content, checkpoint_id=folder, no_dist=True)
    return folder


def save_deepspeed(folder: Path, state: State) -> Path:
    """Write what DeepSpeed writes of ZeRO 2: the network whole, the optimiser in parts."""
    (folder / "last").mkdir(parents=True)
    (folder / "latest").write_text("last")
    beside = {
        "ds_version": "0.14.4", "ds_config": {"zero_optimization": {"stage": 2}}, "optimizer": None, "lr_scheduler": {},
        "buffer_names": [], "param_shapes": [{key: value.shape for key, value in state.items()}], "epoch": 3,
        "sparse_tensor_module_names": set(), "global_steps": 100, "dp_world_size": 8, "mp_world_size": 1,
    }  # fmt: skip
    torch.save({"module": state, **beside}, folder / "last" / "mp_rank_00_model_states.pt")
    (folder / "last" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"not needed")
    return folder


def same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_pieces_of_two_fsdp_processes_are_put_together(tmp_path: Path) -> None:
    port = str(free_port())
    processes = []
    for rank in range(2):
        places = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = [sys.executable, "-c", FSDP, str(tmp_path)]
        processes.append(subprocess.Popen(words, env={**os.environ, **places}, stderr=subprocess.PIPE))
    ended = [(process.communicate()[1], process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0], ended
    assert len(list((tmp_path / "shards").glob("*.distcp"))) == 2
    found = read(tmp_path / "shards")
    same(found["model_state_dict"], torch.load(tmp_path / "whole.pth", weights_only=True))
    assert found.keys() == {"model_state_dict", "optim", "epoch"}
    (tmp_path / "shards" / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0.distcp: .* cannot be read, copy the folder again"):
        read(tmp_path / "shards")


@pytest.mark.parametrize("wrapped", [{"model": STATE, "optimizer": {"state": {"x": torch.ones(2)}}}, STATE])
def test_a_network_is_read_with_or_without_its_training(tmp_path: Path, wrapped: dict[str, Any]) -> None:
    found = read(save_distributed(tmp_path / "shards", {**wrapped, "step": 7}))
    same(found["model_state_dict"], STATE)
    assert found.keys() == {"model_state_dict", "step", *({"optimizer"} if "model" in wrapped else ())}


def test_mindeye2_is_imported_from_folders_as_from_its_file(tmp_path: Path) -> None:
    state = mindeye2_state(voxels=[7, 9, 8])
    wrapped = {f"module.{key}": value for key, value in state.items()}
    sources = {
        "file": save_last(tmp_path / "last.pth", state),
        "deepspeed": save_deepspeed(tmp_path / "deepspeed", state),
        "fsdp": save_distributed(tmp_path / "fsdp", {"model": wrapped, "optimizer": {"x": torch.ones(2)}, "epoch": 3}),
    }
    packs = {}
    for name, path in sources.items():
        out = tmp_path / "packs" / name
        told = ["engines", "import", "mindeye2", "--weights", str(path), "--licence", "mine", "--out", str(out)]
        assert main(told) == 0
        packs[name] = out
    for stage in ("ridge", "backbone", "prior"):
        wanted = load_file(packs["file"] / f"{stage}.safetensors")
        for name in ("deepspeed", "fsdp"):
            same(load_file(packs[name] / f"{stage}.safetensors"), wanted)
    dropped = draft_mindeye2(MindEye2Files(weights=str(sources["deepspeed"]))).dropped["deepspeed"]
    assert {"ds_config", "global_steps"} <= set(dropped["state of the training"])


def test_what_lies_in_parts_of_zero_3_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = save_deepspeed(tmp_path / "out", {"a": torch.zeros(0)})
    with pytest.raises(CheckpointError, match=r"module: expected the tensors of a network.*zero_to_fp32.py .*out"):
        read(folder)
    (folder / "last" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(CheckpointError, match=r"got 1 parts of it.*zero_to_fp32.py"):
        read(folder)
    (folder / "latest").write_text("../elsewhere")
    with pytest.raises(CheckpointError, match=r"latest: expected the name of a file beside it, got '../elsewhere'"):
        read(folder)


class Evil:
    def __init__(self, call: tuple[Any, ...]) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def test_nothing_that_a_description_names_is_called(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    folder = save_distributed(tmp_path / "shards", {"model": STATE})
    described = pickle.loads((folder / ".metadata").read_bytes())
    described.planner_data["x"] = Evil((os.mkdir, (str(marker),)))
    (folder / ".metadata").write_bytes(pickle.dumps(described))
    same(read(folder)["model_state_dict"], STATE)  # what is not asked for is passed over
    assert not marker.exists()
    (folder / ".metadata").write_bytes(pickle.dumps(Evil((os.mkdir, (str(marker),)))))
    with pytest.raises(CheckpointError, match="not a readable description"):
        read(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda stored: setattr(stored, "relative_path", "../shards/__0_0.distcp"), "expected the name of a file"),
        (lambda stored: setattr(stored, "offset", stored.offset + 1), "cannot be read, copy the folder again"),
        (lambda stored: setattr(stored, "transform_descriptors", ["zstd"]), "expected plain tensors, got compressed"),
    ],
)
def test_a_spoilt_description_is_refused(tmp_path: Path, spoil: Any, reason: str) -> None:
    folder = save_distributed(tmp_path / "shards", {"model": STATE})
    described = pickle.loads((folder / ".metadata").read_bytes())
    for stored in described.storage_data.values():
        spoil(stored)
    (folder / ".metadata").write_bytes(pickle.dumps(described))
    with pytest.raises(CheckpointError, match=reason):
        read(folder)


def test_pieces_that_do_not_fill_a_tensor_are_refused(tmp_path: Path) -> None:
    folder = save_distributed(tmp_path / "shards", {"model": STATE})
    described = pickle.loads((folder / ".metadata").read_bytes())
    described.state_dict_metadata["model.b"].size = torch.Size([6])
    (folder / ".metadata").write_bytes(pickle.dumps(described))
    with pytest.raises(CheckpointError, match=r"model.b: expected 6 values, got 5: are files missing\?"):
        read(folder)
