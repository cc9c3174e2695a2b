"""MIRAGE's five heads, their normalisation and the two-way measure against the published numbers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engines.importing.mirage_imagery_files import MirageImageryFiles, MirageImageryLayout, draft_mirage_imagery
from engines.importing.plain_pickles import read_plain_pickle
from rtdecode.decode.families.mirage_imagery import load_mirage_imagery
from rtdecode.decode.families.mirage_imagery.frozen_statistics import FrozenStatistics, frozen_statistics, unit_rows
from rtdecode.decode.families.mirage_imagery.mirage_imagery_decoder import MirageImagery
from rtdecode.errors import CheckpointError
from rtdecode.evaluate.metrics import two_way_each
from rtdecode.packs import open_pack
from rtdecode.statistics import row_cosines
from tests.golden import Golden, close, goldens
from tests.unit.test_golden_cascade import tolerance

NAMES = {"low_level": "blurry"}
HEADS = ("image", "text", "prompt", "low_level", "retrieval")


def decoder(golden: Golden, folder: Path) -> MirageImagery:
    """Import the golden's ridges as they were published: pickled dictionaries."""
    folder.mkdir()
    for head in HEADS:
        name = NAMES.get(head, head)
        content = {part: golden.tensors[f"sd.{name}.{part}"] for part in ("coef", "intercept")}
        (folder / f"ridge_{name}_weights.pkl").write_bytes(pickle.dumps(content))
    shapes = {head: np.atleast_1d(golden.dims[NAMES.get(head, head)]).tolist() for head in HEADS}
    layout = MirageImageryLayout(shapes=shapes)
    draft = draft_mirage_imagery(MirageImageryFiles(ridges=str(folder)), layout=layout)
    draft.seal(folder / "pack", name="golden", licence="none", precision="float32")
    return load_mirage_imagery(open_pack(str(folder / "pack")))


def statistics(golden: Golden, raw: dict[str, Any], rows: slice) -> dict[str, FrozenStatistics]:
    targets = {head: golden.tensors[f"train_{NAMES.get(head, head)}"] for head in HEADS}
    return {head: frozen_statistics(raw[head][rows], one.reshape(len(one), -1)) for head, one in targets.items()}


def test_golden_heads_from_their_pickles_to_frozen_statistics(shared: Path, tmp_path: Path) -> None:
    for number, golden in enumerate(goldens(shared, "mirage_heads")):
        mind, voxels = decoder(golden, tmp_path / str(number)), golden.tensors["voxels"]
        raw = mind.raw(voxels)
        plain = mind.predict(voxels)
        for head in HEADS:
            name = f"raw_{NAMES.get(head, head)}"
            close(golden, name, plain[head], tolerance(golden, name))
        for kind, rows in (("normalised", slice(None)), ("frozen", slice(golden.dims["warm_up"]))):
            mind.statistics = statistics(golden, raw, rows)
            whole = mind.predict(voxels)
            one_by_one = [mind.predict(voxel) for voxel in voxels]
            for head in HEADS:
                name = f"{kind}_{NAMES.get(head, head)}"
                close(golden, name, whole[head], tolerance(golden, name))
                close(golden, name, np.concatenate([one[head] for one in one_by_one]), tolerance(golden, name))


def test_a_refit_gives_the_published_ridges(shared: Path) -> None:
    for golden in goldens(shared, "mirage_heads"):
        voxels = golden.tensors["train_voxels"].astype(np.float64)
        for head in HEADS:
            name = NAMES.get(head, head)
            x = unit_rows(voxels) if head == "retrieval" else voxels
            y = golden.tensors[f"train_{name}"].reshape(len(x), -1)
            about, wanted = x - x.mean(0), y - y.mean(0)
            inner = about.T @ about + golden.info["alpha"] * np.eye(x.shape[1])
            weights = np.linalg.solve(inner, about.T @ wanted).T
            np.testing.assert_allclose(weights, golden.tensors[f"sd.{name}.coef"], atol=1e-4)
            intercept = y.mean(0) - weights @ x.mean(0)
            np.testing.assert_allclose(intercept, golden.tensors[f"sd.{name}.intercept"], atol=1e-4)


def test_golden_two_way_and_pick(shared: Path) -> None:
    for golden in goldens(shared, "mirage_twoway"):
        t, told = golden.tensors, golden.info["tolerance"]
        real, made = t["feat_real"], t["feat_pred"]
        for name, legacy in (("correct", False), ("legacy", True)):
            each = two_way_each(real, made, legacy=legacy)
            close(golden, name, each, told[name])
            close(golden, f"{name}_mean", each.mean(), told[name])
        close(golden, "legacy_of_perfect", two_way_each(real, real, legacy=True).mean(), told["legacy"])
        found = row_cosines(t["retrieval"].reshape(-1), t["hidden"].reshape(len(t["hidden"]), -1))
        close(golden, "similarities", found, told["similarities"])
        assert int(np.nanargmax(found)) == int(t["best"])


def test_one_prediction_has_no_statistics() -> None:
    rows = np.ones((1, 3))
    with pytest.raises(ValueError, match="expected at least two predictions of the warm-up, got 1"):
        frozen_statistics(rows, np.ones((4, 3)))


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this was run",))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["<f8", "<f4", ">f4", "<i8"])
def test_arrays_are_read_without_unpickling(tmp_path: Path, protocol: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    content = {
        "coef": np.asfortranarray(rng.integers(-9, 9, (4, 3)).astype(kind)),
        "intercept": rng.integers(-9, 9, 300).astype(kind),
        "alpha": 2.5,
        "n": 70_000,
        "name": "one",
    }
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_plain_pickle(tmp_path / "r.pkl")
    assert {key: found[key] for key in ("alpha", "n", "name")} == {"alpha": 2.5, "n": 70_000, "name": "one"}
    for key in ("coef", "intercept"):
        np.testing.assert_array_equal(found[key], content[key])


@pytest.mark.parametrize("value", [Harm(), np.array([Harm()], object), Path("x"), {1, 2}])
def test_what_would_run_code_is_refused_and_not_run(
    tmp_path: Path, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.pkl").write_bytes(pickle.dumps({"coef": value}))
    with pytest.raises(CheckpointError, match=r"r\.pkl: expected"):
        read_plain_pickle(tmp_path / "r.pkl")
    assert capsys.readouterr().out == ""


def test_ridges_of_other_sizes_are_refused(tmp_path: Path) -> None:
    save_file({"coef": np.ones((5, 4)), "intercept": np.ones(5)}, tmp_path / "ridge_image_weights.safetensors")
    with pytest.raises(CheckpointError, match=r"expected \[1, 768\] outputs of the head image, got 5"):
        draft_mirage_imagery(MirageImageryFiles(ridges=str(tmp_path)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="expected ridge_image_weights"):
        draft_mirage_imagery(MirageImageryFiles(ridges=str(tmp_path / "empty")))
