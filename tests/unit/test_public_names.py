"""What a script may import: exactly these names, each with its documentation."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import rtdecode

NAMES = {
    "rtdecode": {
        "Client", "Decoder", "EnginePack", "ParticipantBundle", "Settings", "load_decoder", "load_settings",
        "open_pack", "open_participant", "process_runs",
    },
    "rtdecode.acquire": {"Arrival", "FolderWatcher", "Source"},
    "rtdecode.decode": {"Decoder", "load_candidates", "load_decoder", "load_embedder"},
    "rtdecode.derivatives": {
        "BRAIN_MASK", "CALIBRATION_BETAS", "DECODED_COLUMNS", "DecodedTrials", "EVENT_COLUMNS", "MODEL", "MOTION_NAMES",
        "NONE", "REFERENCE", "RunDerivatives", "TASK", "Voxels", "decoded_rows",
        "describe_dataset", "figure_path", "file_path", "read_table", "run_stem", "session_stem",
        "stem_name", "trial_problems", "write_image", "write_reference",
    },
    "rtdecode.estimate": {"Estimator", "Registrar", "brain_mask"},
    "rtdecode.packs": {"EnginePack", "ParticipantBundle", "open_pack", "open_participant"},
    "rtdecode.process": {"Processed", "ProcessedRun", "process_runs"},
    "rtdecode.testing": {"check_clock", "check_engine", "check_family", "check_prior_sampler", "check_source"},
}  # fmt: skip


def rooms() -> list[ModuleType]:
    found = [name for _, name, package in pkgutil.iter_modules(rtdecode.__path__, "rtdecode.") if package]
    return [importlib.import_module(name) for name in found]


@pytest.mark.parametrize("module", NAMES)
def test_a_room_names_what_scripts_may_import(module: str) -> None:
    room = importlib.import_module(module)
    assert set(room.__all__) == NAMES[module]
    for name in room.__all__:
        assert getattr(room, name).__doc__, name


def test_no_other_room_names_anything_and_all_say_what_they_are() -> None:
    for room in rooms():
        assert room.__doc__, room.__name__
        assert set(getattr(room, "__all__", ())) == NAMES.get(room.__name__, set()), room.__name__


def test_what_is_not_named_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute load_everything"):
        _ = rtdecode.load_everything


def test_naming_costs_nothing_before_a_name_is_used() -> None:
    code = "import rtdecode, sys; print({'numba', 'scipy', 'onnxruntime', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_beta_is_decoded_with_the_public_names_alone(tmp_path: object) -> None:
    import numpy as np

    from tests.decode_small import category_beta, write_category_bundle

    folder = tmp_path / "bundle"  # type: ignore[operator]
    write_category_bundle(folder)
    decoder = rtdecode.load_decoder(rtdecode.open_pack("tiny"))
    decoder.load(rtdecode.open_participant(folder))
    embedding, *_ = decoder.decode(category_beta(1, 0.5, np.random.default_rng(0)), (), "t1")
    assert embedding.score.predicted == "house"
