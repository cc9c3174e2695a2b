"""The whole line with cut-down packs of MindEye1, on two days, and of MIRAGE's imagery decoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from engines.pool.disk_index import build_pool
from engines.training.carried_network import carry, widened
from rtdecode import client as wire
from rtdecode.__main__ import main
from rtdecode.decode.score.adapter import adapter_from
from rtdecode.decode.score.disk_pool import DiskPool
from rtdecode.errors import BundleError
from rtdecode.packs import EnginePack, open_participant
from tests.conftest import FakeClock
from tests.small_families import categorised, mindeye1_pack, mirage_imagery_pack, participant_network
from tests.system.line_harness import PLAN, Recorder, run_visit

DECODED = [t for t in PLAN.trials if t.run > PLAN.calibration_runs]
NEXT_DAY = replace(PLAN, calibration_runs=0, decoding_runs=1, trials_per_run=4, volumes_per_run=20)


def stimuli(folder: Path, pack: EnginePack) -> Path:
    PLAN.write_stimuli(folder)
    NEXT_DAY.write_stimuli(folder / "next")
    for path in (folder / "next").glob("*.png"):
        path.rename(folder / path.name)
    (folder / "next").rmdir()
    known = {trial.stimulus: trial.condition for one in (PLAN, NEXT_DAY) for trial in one.trials}
    categorised(folder, known)
    assert main(["engines", "embed", str(folder), "--pack", str(pack.folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def mindeye1(tmp_path_factory: pytest.TempPathFactory) -> EnginePack:
    return mindeye1_pack(tmp_path_factory.mktemp("mindeye1"), samples=2)


@pytest.fixture(scope="module")
def shown(mindeye1: EnginePack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stimuli(tmp_path_factory.mktemp("stimuli") / "shown", mindeye1)


@pytest.fixture(scope="module")
def first(mindeye1: EnginePack, shown: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    """With a pool of the final embeddings of all pictures, whose candidates are told in the order of all tokens."""
    out = tmp_path_factory.mktemp("first")
    path = shown / "embeddings.safetensors"
    with safe_open(path, framework="np") as file:
        final, said = np.ascontiguousarray(file.get_tensor("tokens")[:, :1]), file.metadata()
    save_file({"tokens": final}, out / "final.safetensors", metadata=said)
    pool = shown.parent / "pool"
    build_pool([out / "final.safetensors"], pool)
    decode = {"pack": str(mindeye1.folder), "stimuli": str(shown), "unclip_steps": 2}
    return run_visit(out, FakeClock(), decode=decode | {"pool": str(pool), "pool_tokens": str(path)})


def test_a_first_visit_is_decoded_by_its_own_ridge(first: tuple[Recorder, Path]) -> None:
    recorder, _ = first
    assert not recorder.of(wire.Fault)
    for kind in (wire.Embedding, wire.Score, wire.Reconstruction):
        assert [m.trial for m in recorder.of(kind) if m.final] == [t.trial for t in DECODED]
    assert not recorder.of(wire.Preview)
    assert recorder.of(wire.Session)[-1].absent == ("caption",)


def test_candidates_of_a_pool_of_final_embeddings_are_told_in_the_order_of_their_tokens(
    first: tuple[Recorder, Path], shown: Path
) -> None:
    with safe_open(shown / "embeddings.safetensors", framework="np") as file:
        tokens, names = file.get_tensor("tokens").astype(np.float64), json.loads(file.metadata()["names"])

    pool, moved = DiskPool(shown.parent / "pool"), 0
    for message in first[0].of(wire.Embedding):
        assert message.tokens is not None
        query = np.frombuffer(message.tokens.data, message.tokens.dtype).reshape(message.tokens.shape)
        near = [name for name, _ in pool.nearest(query[0], 16)]
        flat, one = tokens[[names.index(name) for name in near]].reshape(16, -1), query.astype(np.float64).ravel()
        by_tokens = flat @ one / np.linalg.norm(flat, axis=1) / np.linalg.norm(one)
        best = np.argsort(-by_tokens)[:5]
        assert list(message.nearest) == [near[i] for i in best]
        np.testing.assert_allclose(list(message.nearest.values()), by_tokens[best], atol=1e-4)
        moved += near[best[0]] != near[0]
        assert message.unsearched == ""
    assert moved  # the tokens choose others than the final embedding alone


def test_a_later_visit_is_decoded_by_the_network_that_the_bundle_carries(
    mindeye1: EnginePack, shown: Path, first: tuple[Recorder, Path], tmp_path: Path
) -> None:
    bundle = open_participant(first[1] / "bundle")
    voxels = bundle.provenance.mask_voxels
    network = participant_network(tmp_path / "network", voxels)
    carry(bundle, network, tmp_path / "carried")
    carried = open_participant(tmp_path / "carried")
    beta = np.random.default_rng(0).standard_normal(voxels).astype(np.float32)
    before, after = (adapter_from(one.adapter) for one in (bundle, carried))
    np.testing.assert_allclose(
        after.predict(after.chosen(beta)), before.predict(before.chosen(beta)), rtol=1e-3, atol=1e-4
    )
    (tmp_path / "visit").mkdir()
    decode = {"pack": str(mindeye1.folder), "stimuli": str(shown), "bundle": str(tmp_path / "carried")}
    recorder, folder = run_visit(
        tmp_path / "visit",
        FakeClock(),
        NEXT_DAY,
        session={"session": "02"},
        decode={**decode, "prior_steps": 3, "unclip_steps": 3},
    )
    trials = [m.trial for m in recorder.of(wire.Beta) if m.final and m.invalid is None]
    assert len(trials) >= 3  # a head that moves in a short run may cost one
    assert not recorder.of(wire.Fault)
    for kind in (wire.Preview, wire.Reconstruction):
        assert [m.trial for m in recorder.of(kind) if m.final] == trials
    order = [type(m) for m in recorder.messages if type(m) in (wire.Preview, wire.Reconstruction)]
    assert order == [wire.Preview, wire.Reconstruction] * (len(order) // 2)
    kept = {path.name.partition("_")[0] for path in folder.rglob("recon/*")}
    assert kept == set(trials)


def test_a_network_of_another_mask_or_scale_is_not_carried(first: tuple[Recorder, Path], tmp_path: Path) -> None:
    bundle = open_participant(first[1] / "bundle")
    with pytest.raises(BundleError, match=f"takes 7 voxels, the mask of .* has {bundle.provenance.mask_voxels}"):
        carry(bundle, participant_network(tmp_path / "network", 7), tmp_path / "out")
    whole = mindeye1_pack(tmp_path / "whole", voxels=7, samples=1)
    with pytest.raises(BundleError, match="expected the scaling of its betas"):
        carry(bundle, whole, tmp_path / "out")


def test_an_adapter_is_widened_to_another_scale(first: tuple[Recorder, Path]) -> None:
    adapter = adapter_from(open_participant(first[1] / "bundle").adapter)
    rng = np.random.default_rng(1)
    n = int(adapter.voxels.max()) + 3
    wide = widened(adapter, rng.standard_normal(n).astype("f4"), rng.uniform(0.5, 2, n).astype("f4"))
    beta = rng.standard_normal(n).astype(np.float32)
    found = wide.predict(wide.chosen(beta))
    np.testing.assert_allclose(found, adapter.predict(adapter.chosen(beta)), rtol=1e-3, atol=1e-4)


def test_mirage_imagery_decodes_a_whole_visit(tmp_path: Path) -> None:
    pack = mirage_imagery_pack(tmp_path / "pack", samples=2, heads=False)
    folder = stimuli(tmp_path / "shown", pack)
    recorder, session = run_visit(tmp_path, FakeClock(), decode={"pack": str(pack.folder), "stimuli": str(folder)})
    assert not recorder.of(wire.Fault)
    for kind in (wire.Embedding, wire.Score, wire.Preview, wire.Reconstruction):
        assert [m.trial for m in recorder.of(kind) if m.final] == [t.trial for t in DECODED]
    assert recorder.of(wire.Session)[-1].absent == ("caption",)
    kept = {path.name.partition("_")[0] for path in session.rglob("recon/*")}
    assert kept == {trial.trial for trial in DECODED}
