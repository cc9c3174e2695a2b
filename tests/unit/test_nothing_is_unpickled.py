"""No source file reads or writes a pickle; published weights alone are read as torch wrote them, tensors only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for room in ("rtdecode", "engines", "calibration", "bench") for path in ROOT.glob(f"{room}/**/*.py")
)
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "copyreg",
    "pandas.io.pickle",
}
ERRORS = {"UnpicklingError", "PicklingError"}
CALLS = {
    "torch.save",
    "torch.jit.save",
    "torch.jit.load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.distributed.all_gather_object",
    "torch.distributed.gather_object",
    "torch.distributed.broadcast_object_list",
    "accelerate.utils.gather_object",
    "accelerate.utils.broadcast_object_list",
    "accelerate.utils.save",
    "numpy.lib.format.read_array",
}
METHODS = {"save_state", "load_state", "read_pickle", "to_pickle"}


def unpickled(source: str) -> Iterator[str]:
    """Tell what in a source reads or writes a pickle, or may."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if alias.name.split(".")[0] in MODULES or alias.name in MODULES:
                    yield f"line {node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if (node.module.split(".")[0] in MODULES or node.module in MODULES) and alias.name not in ERRORS:
                    yield f"line {node.lineno}: from {node.module} import {alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and dotted(node, names) in CALLS:
            yield f"line {node.lineno}: {dotted(node, names)}"
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield f"line {node.lineno}: {node.attr}"
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if dotted(node.func, names) in ("torch.load", "torch.serialization.load"):
            only = given.get("weights_only")
            if not (isinstance(only, ast.Constant) and only.value is True):
                yield f"line {node.lineno}: torch.load without weights_only=True"
        allow = given.get("allow_pickle")
        if allow is not None and not (isinstance(allow, ast.Constant) and allow.value is False):
            yield f"line {node.lineno}: allow_pickle"
        if dotted(node.func, names) in ("numpy.load", "numpy.save") and len(node.args) > 2:
            yield f"line {node.lineno}: {dotted(node.func, names)} with allow_pickle by its place"


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Full name of what an expression names, as it was imported."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_unpickles_nothing(path: Path) -> None:
    assert list(unpickled(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as safe",
        "from pickle import loads",
        "from joblib import load",
        "import dill",
        "import torch\ntorch.save({}, 'x')",
        "import torch as t\nt.save({}, 'x')",
        "from torch import save\nsave({}, 'x')",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import torch\nsure = True\ntorch.load('x', weights_only=sure)",
        "from torch import load as read\nread('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', None, True)",
        "from accelerate.utils import gather_object\ngather_object([1])",
        "import pandas\npandas.read_pickle('x')",
        "accelerator.save_state('x')",
    ],
)
def test_what_unpickles_is_found(source: str) -> None:
    assert list(unpickled(source))


def test_published_weights_may_be_read_as_tensors() -> None:
    allowed = "from pickle import UnpicklingError\nimport torch\ntorch.load('x', map_location='cpu', weights_only=True)"
    assert list(unpickled(allowed)) == []
    readers = [path.relative_to(ROOT).as_posix() for path in SOURCES if "torch.load(path" in path.read_text("utf-8")]
    assert len(SOURCES) > 200
    assert len(readers) == 2, readers
