"""A table of TOML becomes a frozen dataclass; every problem is named by its path."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rtdecode.errors import SettingsError

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]+$")]
"""A BIDS label."""
_ENTITIES = ("sub", "ses", "task")


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises
    ------
    SettingsError
        It is none, or cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError([f"{path}: no such file; `rtdecode check --example` prints one to start from"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: not valid TOML: {error}"]) from None
    except OSError as error:
        raise SettingsError([f"{path}: expected a TOML file that can be read: {error.strerror}"]) from None


def section_of(kind: type[Any], raw: Any, where: str, root: Path, problems: list[str]) -> Any | None:
    """Make a dataclass of a table; None where there is a problem.

    Parameters
    ----------
    kind : type
        A dataclass; its fields are the settings.
    raw : object
        Parsed TOML.
    where : str
        Path of the table, for messages.
    root : Path
        What relative paths are relative to.
    problems : list of str
        Gets each that is found, with its path.
    """
    if not isinstance(raw, Mapping):
        problems.append(f"{where}: expected a table, got {type(raw).__name__}")
        return None
    before = len(problems)
    hints = typing.get_type_hints(kind, include_extras=True)
    for name in raw.keys() - hints.keys():
        problems.append(f"{where}.{name}: no such setting; expected one of {', '.join(hints)}")
    values: dict[str, Any] = {}
    for spec in fields(kind):
        if spec.name not in raw:
            if spec.default is MISSING and spec.default_factory is MISSING:
                problems.append(f"{where}.{spec.name}: required, and missing")
            elif isinstance(spec.default, Path):
                values[spec.name] = root / spec.default
            continue
        try:
            values[spec.name] = _convert(raw[spec.name], hints[spec.name], root)
        except msgspec.ValidationError as error:
            problems.append(f"{where}.{spec.name}: {_plain_problem(raw[spec.name], hints[spec.name]) or error}")
    return kind(**values) if len(problems) == before else None


def _plain_problem(value: Any, hint: Any) -> str:
    """Say what is wrong with a BIDS label or one of few words; nothing of another setting."""
    if typing.get_origin(hint) is Literal:
        return f"expected one of {', '.join(map(repr, typing.get_args(hint)))}, got {value!r}"
    if hint is not Name or not isinstance(value, str):
        return ""
    entity, dash, label = value.partition("-")
    if dash and entity in _ENTITIES:
        return f"expected a label without its entity, got {value!r}: drop the {entity}-, write {label!r}"
    return f"expected a BIDS label of letters and digits, got {value!r}"


def _convert(value: Any, hint: Any, root: Path) -> Any:
    choices = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is Mapping:
        return {name: _convert(one, choices[1], root) for name, one in msgspec.convert(value, dict[str, Any]).items()}
    if Path in choices:
        literals = [c for choice in choices for c in typing.get_args(choice)]
        if value in literals:
            return value
        return root / Path(msgspec.convert(value, str)).expanduser()
    return msgspec.convert(value, hint)


def name_or_folder(told: str, root: Path) -> str:
    """Return a name as it is, and a path (one with a slash) relative to `root` where such a folder is there."""
    folder = root / told
    return str(folder) if "/" in told and folder.is_dir() else told
