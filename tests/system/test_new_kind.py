"""The how-to "a score topic": patches of a copy of the package, decoded with end to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.examples import changes

ROOT = Path(__file__).resolve().parents[2]
Patch = dict[str, list[tuple[str, str]]]
"""By file: each text and what stands there instead."""

FIELD: Patch = changes("score_topic/a_field.diff")
KIND: Patch = changes("score_topic/a_kind.diff")
CLASS: Patch = changes("score_topic/its_class.diff")
VISIT = """
import csv, json, sys
from pathlib import Path

import rtdecode
from rtdecode import client as wire
from rtdecode.decode.worker import WorkerService
from rtdecode.publish.display.board import Board
from rtdecode.settings import DecodeSettings
from tests.conftest import FakeClock
from tests.decode_small import category_update, write_category_bundle
from tests.system.line_harness import run_visit

if __name__ == "__main__":
    out = Path(sys.argv[1])
    recorder, folder = run_visit(out, FakeClock())
    board = Board()
    for message in recorder.messages:
        board.apply(message)
    (table,) = folder.rglob("*_desc-decoded_events.tsv")
    write_category_bundle(out / "bundle")
    worker = WorkerService(DecodeSettings())
    try:
        worker.load(out / "bundle")
        parts = [type(part).__name__ for part, _ in worker.decode(category_update(1))]
    finally:
        worker.close()
    told = [m for m in recorder.messages if wire.topic_of(m) in ("score", "surprise")]
    print(json.dumps({
        "package": rtdecode.__file__,
        "parts": parts,
        "messages": [
            [wire.topic_of(m), type(m).__name__, m.seq, m.trial, m.revision, m.final,
             {n: v for n, v in (m.fields if isinstance(m, wire.Other) else vars(m)).items()
              if n in ("lead", "distance", "evidence", "chance")}]
            for m in told],
        "rows": list(csv.DictReader(table.open(), delimiter="\\t")),
        "figures": {trial["trial"]: trial["figures"] for trial in board.state()["trials"]},
        "faults": [m.reason for m in recorder.of(wire.Fault)],
    }))
"""


MESSAGE = """
import json
import numpy as np
import rtdecode
from rtdecode import client, decoded
from rtdecode.publish import messages
from tests.decode_small import category_update

part = decoded.Surprise(distance=2.0, course=np.zeros(3, np.float32))
message = client.unpack(*client.pack(messages.decoded(category_update(1), part)))
told = {"name": type(message).__name__, "distance": message.distance, "shape": message.course.shape}
print(json.dumps({"package": rtdecode.__file__, "faults": [], **told}))
"""


def visit(tmp_path: Path, script: str, *patches: Patch) -> dict[str, Any]:
    """Run a script with a patched copy of the package; return what it prints."""
    package = tmp_path / "copy" / "rtdecode"
    shutil.copytree(ROOT / "rtdecode", package, ignore=shutil.ignore_patterns("__pycache__"))
    for patch in patches:
        for name, stretches in patch.items():
            text = (package / name).read_text()
            for old, new in stretches:
                assert text.count(old) == 1, f"{name}: {old!r}"
                text = text.replace(old, new)
            (package / name).write_text(text)
    (tmp_path / "visit.py").write_text(script)
    (tmp_path / "out").mkdir()
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "visit.py"), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert found["package"] == str(package / "__init__.py")
    assert found["faults"] == []
    return found


@pytest.mark.system
def test_a_field_changes_three_files_and_a_kind_two(tmp_path: Path) -> None:
    assert max(len(FIELD), len(KIND)) <= 4
    found = visit(tmp_path, VISIT, FIELD, KIND)
    scores, surprises = ([m for m in found["messages"] if m[0] == topic] for topic in ("score", "surprise"))
    finals = {message[3]: message[6] for message in scores if message[5]}
    assert len(finals) == len(found["rows"]) > 0
    for row in found["rows"]:
        told = finals[row["trial"]]
        assert told["lead"] == told["evidence"] / told["chance"]
        assert row["lead"] == f"{told['lead']:.2f}"
        assert found["figures"][row["trial"]]["lead"] == told["lead"]
    assert found["parts"] == ["Embedding", "Surprise", "Reconstruction", "Caption"]
    assert {message[1] for message in surprises} == {"Other"}
    assert [message[2] for message in surprises] == list(range(len(scores)))
    assert [message[3:6] for message in surprises] == [message[3:6] for message in scores]
    distances = {message[3]: message[6]["distance"] for message in surprises if message[5]}
    assert {row["trial"]: float(row["surprise"]) for row in found["rows"]} == distances
    assert {trial: told["surprise"] for trial, told in found["figures"].items()} == distances


@pytest.mark.system
def test_a_third_file_gives_the_kind_its_class(tmp_path: Path) -> None:
    found = visit(tmp_path, MESSAGE, KIND, CLASS)
    assert found == {**found, "name": "Surprise", "distance": 2.0, "shape": [3]}
