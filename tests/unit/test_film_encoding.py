"""A film to a prediction: windows as published, ensembles, missing modalities, and the sealed folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.film.encoding import FilmOrder, encode_film
from engines.film.features import open_features
from engines.film.parcel_names import read_parcel_names
from rtdecode.__main__ import main
from rtdecode.decode.families.encoding.film_windows import count_volumes, ensemble_weights, windows, word_frames
from rtdecode.decode.networks.build import load
from rtdecode.errors import BundleError, EngineError, SettingsError
from rtdecode.packs.film_prediction import FilmPrediction, PredictionTable, open_prediction, write_prediction
from tests.film_small import SHAPE, small_features, small_pack

DURATION_S = 310.3  # three windows, of which the last is mostly beyond the film


def test_golden_windows_words_and_ensembles(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "mirage_windowing.json").read_text())
    found = windows(golden["duration_s"])
    np.testing.assert_allclose([one.start_s for one in found], golden["segment_starts_s"], atol=1e-9)
    inside = range(golden["n_feature_frames"])
    for one, frames, volumes in zip(
        found, golden["window_source_frame_index_plus1"], golden["fmri_window_source_tr_plus1"], strict=True
    ):
        assert [frame + 1 if frame in inside else 0 for frame in one.frames] == frames
        assert [volume + 1 for volume in one.volumes] == volumes[: len(one.volumes)]
    assert count_volumes(golden["duration_s"]) == golden["n_trs_after_trim"] == sum(len(one.volumes) for one in found)
    slices = [word_frames(onset, length, 20) for onset, length in golden["words_onset_duration"]]
    assert [None if one is None else [one.start, one.stop] for one in slices] == golden["word_frame_slices"]
    scores = np.array(golden["ensemble"]["scores"], np.float64)
    np.testing.assert_allclose(ensemble_weights(scores), golden["ensemble"]["weights"], atol=1e-6)


@torch.no_grad()
def by_hand(folder: Path, subject: int, absent: tuple[str, ...] = (), member: str = "member_1") -> np.ndarray:
    """Windows cut from features that were padded with zeros, as the published script does it."""
    from rtdecode.packs import open_pack

    network = load(open_pack(str(folder / "pack")), member, device="cpu", dtype=torch.float32)
    features = open_features(folder / "features")
    whole = {
        name: features.stretch(name, range(-9, features.about.frames + 400)) for name in ("text", "audio", "vision")
    }
    keep = torch.tensor([[float(name not in absent) for name in whole]])
    out = []
    for start in (0, 298, 596):  # -9, 289, 587 frames of the film
        out.append(network(*(one[None, :, start : start + 298] for one in whole.values()), keep).predicted[0, subject])
    return torch.cat(out)[: round(DURATION_S / 1.49)].numpy()


def test_a_film_is_predicted_window_by_window_and_cut_to_its_volumes(tmp_path: Path) -> None:
    pack, features = small_pack(tmp_path), small_features(tmp_path / "features", DURATION_S)
    found = encode_film(pack, features, FilmOrder(subject="sub-05")).prediction
    assert found.predicted.shape == (208, SHAPE.parcels)
    np.testing.assert_allclose(found.predicted, by_hand(tmp_path, 3), atol=1e-5)
    mean = encode_film(pack, features, FilmOrder(ablate=False))
    expected = np.mean([by_hand(tmp_path, subject) for subject in range(4)], axis=0)
    np.testing.assert_allclose(mean.prediction.predicted, expected, atol=1e-5)
    heads = load(pack, "member_1", device="cpu", dtype=torch.float32).head
    np.testing.assert_allclose(
        heads(torch.from_numpy(mean.trunk)[None])[0].mean(0).detach(), expected, atol=1e-5
    )  # the trunk is what the heads read
    np.testing.assert_allclose(found.profiles["attention"].sum(1), 1, atol=1e-4)


def test_a_missing_modality_is_told_and_left_out_as_in_the_training(tmp_path: Path) -> None:
    pack = small_pack(tmp_path)
    features = small_features(tmp_path / "features", DURATION_S, absent=("text",))
    found = encode_film(pack, features, FilmOrder(subject="sub-01")).prediction
    np.testing.assert_allclose(found.predicted, by_hand(tmp_path, 0, absent=("text",)), atol=1e-5)
    assert found.about.modalities == ["audio", "vision"]
    assert found.about.absent == {"text": "the film has none"}
    ablated = found.profiles["ablation"]
    without = by_hand(tmp_path, 0, absent=("text", "audio"))
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.predicted.T, without.T, strict=True)]
    np.testing.assert_allclose(ablated[1], expected, atol=1e-3)
    assert (ablated[0] == 1).all()


def test_an_ensemble_is_the_weighted_mean_of_its_members(tmp_path: Path) -> None:
    pack, _ = small_pack(tmp_path, members=2), small_features(tmp_path / "features", DURATION_S)
    scores = np.array([[0.3] * SHAPE.parcels, [0.1, 0.3, np.nan, 0.2, 0.3, 0.5]])
    order = FilmOrder(subject="sub-02", scores=scores, ablate=False)
    found = encode_film(pack, open_features(tmp_path / "features"), order).prediction
    each = [by_hand(tmp_path, 1, member=f"member_{number}") for number in (1, 2)]
    weights = np.exp(scores / 0.3)
    weights = np.nan_to_num(weights) / np.nansum(weights, 0)
    np.testing.assert_allclose(found.predicted, (weights[:, None] * np.stack(each)).sum(0), atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    pack, features = small_pack(tmp_path), small_features(tmp_path / "features", DURATION_S)
    with pytest.raises(EngineError, match=r"expected subject sub-01, sub-02, sub-03, sub-05 or mean, got sub-04"):
        encode_film(pack, features, FilmOrder(subject="sub-04"))
    with pytest.raises(EngineError, match="expected 6 parcels, got 2 names"):
        encode_film(pack, features, FilmOrder(parcels=["1", "2"]))
    (tmp_path / "film.mp4").touch()
    with pytest.raises(BundleError, match=r"expected features of this film in film\.mp4\.features beside it"):
        open_features(tmp_path / "film.mp4")


def test_the_command_writes_what_a_session_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_pack(tmp_path)
    small_features(tmp_path / "film.mp4.features", DURATION_S, absent=("audio",))
    (tmp_path / "film.mp4").touch()
    names = "".join(
        f"{i}\t7Networks_LH_{n}_1\n" for i, n in enumerate(["Vis", "Vis", "Cont", "Cont", "Default", "Vis"])
    )
    (tmp_path / "atlas.tsv").write_text("index\tname\n" + names)
    order = ["encode", str(tmp_path / "film.mp4"), "--model", str(tmp_path / "pack"), "--subject", "sub-03"]
    assert main([*order, "--parcels", str(tmp_path / "atlas.tsv"), "--out", str(tmp_path / "P")]) == 0
    said = capsys.readouterr().out
    assert "without audio: the film has none" in said
    assert "208 volumes of 6 parcels" in said
    found = open_prediction(tmp_path / "P")
    assert found.about.parcels == ["0", "1", "2", "3", "4", "5"]
    assert found.about.networks == ["Vis", "Vis", "Cont", "Cont", "Default", "Vis"]
    assert found.about.delay_s == 4.47
    assert found.about.sources.keys() == {"model", "features"}
    assert found.profiles.keys() == {"attention", "ablation"}


def test_a_prediction_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    about = PredictionTable(film="f", duration_s=15.0, t_r_s=1.5, delay_s=4.5, parcels=["1", "2"])
    values = np.zeros((10, 2), np.float32)
    write_prediction(tmp_path / "good", FilmPrediction(about=about, predicted=values, profiles={}))
    assert open_prediction(tmp_path / "good").predicted.shape == (10, 2)
    with pytest.raises(BundleError, match=r"expected 10 volumes of 2 parcels.*got an array of shape \(9, 2\)"):
        write_prediction(tmp_path / "bad", FilmPrediction(about=about, predicted=values[1:], profiles={}))
    values[3, 1] = np.nan
    with pytest.raises(BundleError, match="predicted holds NaN"):
        write_prediction(tmp_path / "bad", FilmPrediction(about=about, predicted=values, profiles={}))
    (tmp_path / "good" / "prediction.json").write_text("{}")
    with pytest.raises(BundleError, match="content differs from the manifest"):
        open_prediction(tmp_path / "good")


def test_a_table_of_parcels_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("label,name\n1,a\n")
    with pytest.raises(SettingsError, match="expected columns index and name"):
        read_parcel_names(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").write_text("index\tname\n7\tV1\n")
    assert read_parcel_names(tmp_path / "b.tsv") == (["7"], [])


def test_the_network_is_exported_and_held_to_torch(tmp_path: Path) -> None:
    small_pack(tmp_path)
    assert main(["engines", "export", str(tmp_path / "pack"), "--out", str(tmp_path / "onnx")]) == 0
    from rtdecode.decode.runtime.engine import OnnxEngine
    from rtdecode.packs import open_pack

    pack = open_pack(str(tmp_path / "onnx"))
    part = pack.description.parts["member_1"]
    assert part.difference is not None
    assert part.difference < 1e-4
    features = small_features(tmp_path / "features", DURATION_S)
    engine = OnnxEngine(pack.folder / part.file, name="member_1", threads=1)
    given = {name: features.stretch(name, range(-9, 289))[None].numpy() for name in ("text", "audio", "vision")}
    found = engine.run({**given, "present": np.ones((1, 3), np.float32)})
    assert found.keys() == {"predicted", "trunk", "attention"}
    np.testing.assert_allclose(found["predicted"][0, 2], by_hand(tmp_path, 2)[:100], atol=1e-4)
