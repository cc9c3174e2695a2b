"""Fills pages with what is read from the code, so that it cannot go stale; a hook of mkdocs.

A line ``<!-- generated: NAME ARGUMENT... -->`` of a page is replaced by what the function of that name in `MAKERS`
returns. Meanings of fields come from the section "Attributes" of the class's docstring.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[1]
_MARK = re.compile(r"^<!-- generated: (.+?) -->$", re.MULTILINE)
_SECTION = re.compile(r"^(Attributes|Parameters|Raises|Returns)\n-{3,}\n", re.MULTILINE)
_LARGEST = 1 << 62
_WORDS = {"bytes": "bytes", "str": "text", "int": "whole number", "float": "number", "bool": "true or false"}


def on_config(config: dict[str, Any]) -> None:
    """List the decision records in the navigation; called by mkdocs."""
    for entry in config["nav"]:
        if isinstance(entry, dict) and "Decisions" in entry:
            entry["Decisions"] = ["decisions/index.md", *(f"decisions/{path.name}" for path in _records())]


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the marks of a page; called by mkdocs."""
    return _MARK.sub(lambda found: _made(*found[1].split()), markdown)


def _made(name: str, *arguments: str) -> str:
    return MAKERS[name](*arguments)


# docstrings ---------------------------------------------------------------------------------------------------


def prose(kind: type) -> str:
    """Return the docstring of a class without its numpydoc sections."""
    text = inspect.cleandoc(kind.__doc__ or "")
    found = _SECTION.search(text)
    return text[: found.start() if found else None].strip()


def meanings(kind: type) -> dict[str, tuple[str, str]]:
    """Return type and meaning of each field that the docstrings of a class and its bases tell."""
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(kind.__mro__):
        if "__doc__" in vars(base) and base.__doc__:
            found.update(_attributes(inspect.cleandoc(base.__doc__)))
    return found


def _attributes(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    body = text.partition("Attributes\n----------\n")[2]
    for entry in re.split(r"\n(?=\S)", body):
        head, _, meaning = entry.partition("\n")
        if not head or set(head) == {"-"}:
            return
        names, _, kind = head.partition(" : ")
        for name in names.split(", "):
            yield name.strip(), (kind.strip(), " ".join(meaning.split()))


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Escape what Markdown would take for its own, but for code."""
    pieces = text.split("`")
    pieces[::2] = [piece.replace("|", "\\|").replace("<", "&lt;") for piece in pieces[::2]]
    return "`".join(pieces)


def worded(hint: Any) -> str:
    """Return a type as words that hold in every language."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "none"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(worded(one) for one in arguments)
    if origin is typing.Annotated:
        return worded(arguments[0]) + _bounds(arguments[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{one!r}`" for one in arguments).replace("'", '"')
    if origin in (tuple, list):
        return f"list of {worded(arguments[0])}"
    if origin is dict:
        return f"map of {worded(arguments[0])} to {worded(arguments[1])}"
    name = getattr(hint, "__name__", str(hint))
    return "[array](#arrays)" if name == "Array" else _WORDS.get(name, name)


def _bounds(notes: tuple[Any, ...]) -> str:
    told = []
    for note in notes:
        for name, sign in (("gt", "above"), ("ge", "from"), ("le", "to")):
            value = getattr(note, name, None)
            if value is not None:
                told.append(f"{sign} {value}" if value < _LARGEST else f"{sign} 2^63 - 1")
        if getattr(note, "max_length", None):
            told.append(f"at most {note.max_length} long")
        if getattr(note, "pattern", None):
            told.append(f"of the form `{note.pattern}`")
    return f", {', '.join(told)}" if told else ""


# the wire -----------------------------------------------------------------------------------------------------


def messages() -> str:
    """Return every message of the stream."""
    from rtdecode import client

    own = {name: kind for name, kind in client.TOPICS.items()}
    parts = ["### The header of every message {#header}", prose(client.Message), _fields(client.Message, set())]
    header = {field.name for field in dataclasses.fields(client.Message)}
    for topic, kind in own.items():
        parts += [f"### `{topic}` {{#{topic}}}", prose(kind), _fields(kind, header)]
    return "\n\n".join(parts)


def _fields(kind: type, without: set[str]) -> str:
    told, hints = meanings(kind), typing.get_type_hints(kind)
    rows = []
    for field in dataclasses.fields(kind):
        if field.name not in without:
            sort, meaning = told[field.name]
            choice = ", ".join(f"`{one}`" for one in sort.strip("{}").split(", ")) if sort.startswith("{") else ""
            rows.append((f"`{field.name}`", choice or worded(hints[field.name]), meaning))
    return table(("field", "type", "meaning"), rows)


def requests() -> str:
    """Return every request."""
    from rtdecode.publish import requests as asked

    parts = ["### Fields of every request {#request}", prose(asked.Request), _struct(asked.Request, set())]
    every = {field.name for field in msgspec.structs.fields(asked.Request)}
    for kind in typing.get_args(asked.AnyRequest):
        name = kind.__struct_config__.tag
        parts += [f"### `{name}` {{#request-{name}}}", prose(kind), _struct(kind, every)]
    return "\n\n".join(parts)


def _struct(kind: type[msgspec.Struct], without: set[str]) -> str:
    told, hints = meanings(kind), typing.get_type_hints(kind, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(kind):
        if field.name not in without:
            needed = "" if field.required else " (may be left out)"
            rows.append((f"`{field.name}`", worded(hints[field.name]) + needed, told.get(field.name, ("", ""))[1]))
    return table(("field", "type", "meaning"), rows) if rows else ""


# files --------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Return every section of a settings file."""
    from rtdecode.settings import SeriesRule, Settings

    parts = []
    for name, kind in typing.get_type_hints(Settings).items():
        told = meanings(kind)
        rows = []
        for field in dataclasses.fields(kind):
            required = field.default is field.default_factory is dataclasses.MISSING
            made = field.default if field.default is not dataclasses.MISSING else None
            if field.default_factory is not dataclasses.MISSING:
                made = field.default_factory()
            sort, meaning = told[field.name]
            rows.append((f"`{field.name}`", sort, "required" if required else _toml(made), meaning))
        parts += [f"## `[{name}]` {{#{name}}}", prose(kind), table(("setting", "type", "default", "meaning"), rows)]
        if name == "scanner":
            parts += ["### A rule of `series` {#series}", prose(SeriesRule), structure("rtdecode.settings:SeriesRule")]
    return "\n\n".join(parts)


def _toml(value: object) -> str:
    if value is None or value == {} or value == ():
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value:g}`" if isinstance(value, int | float) else f'`"{value}"`'


def structure(place: str) -> str:
    """Return the fields of one structure that is read from a file, given as ``module:Class``."""
    module, _, name = place.partition(":")
    kind = getattr(importlib.import_module(module), name)
    told, hints = meanings(kind), typing.get_type_hints(kind)
    rows = []
    for field in msgspec.structs.fields(kind):
        sort, meaning = told.get(field.name, ("", ""))
        needed = "" if field.required else "may be left out"
        rows.append((f"`{field.encode_name}`", sort or worded(hints[field.name]), needed, meaning))
    return table(("field", "type", "", "meaning"), rows)


def described(place: str) -> str:
    """Return docstring and fields of one structure, given as ``module:Class``."""
    module, _, name = place.partition(":")
    return f"{prose(getattr(importlib.import_module(module), name))}\n\n{structure(place)}"


def arrays(place: str) -> str:
    """Return what a class holds by its docstring alone, given as ``module:Class``."""
    module, _, name = place.partition(":")
    kind = getattr(importlib.import_module(module), name)
    rows = []
    for name_of, (sort, meaning) in meanings(kind).items():
        rows.append((f"`{name_of}`", sort.replace("ndarray of ", ""), meaning))
    return f"{prose(kind)}\n\n{table(('name', 'type', 'meaning'), rows)}"


def layout(module: str) -> str:
    """Return the layout of a folder that the docstring of a module tells after its first line."""
    text = inspect.cleandoc(importlib.import_module(module).__doc__ or "")
    return f"```text\n{text.partition(chr(10) * 2)[2]}\n```"


def columns(name: str) -> str:
    """Return the columns of one of the tables in a session folder."""
    from rtdecode.derivatives import columns as known

    rows = [
        (f"`{column}`", str(told.get("Units", "")), str(told.get("Description", "")))
        for column, told in getattr(known, name).items()
    ]
    return table(("column", "unit", "meaning"), rows)


def journal() -> str:
    """Return the records of the journals."""
    from rtdecode.session import entries

    rows = []
    for kind in (*typing.get_args(entries.Input), entries.OutputEntry):
        names = [f"`{field.name}`" for field in msgspec.structs.fields(kind) if field.name != "t_wall"]
        rows.append((f"`{kind.__struct_config__.tag}`", prose(kind), ", ".join(names)))
    return table(("kind", "meaning", "fields"), rows)


def layers() -> str:
    """Return the layers that import-linter keeps, from the top down."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = [one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers"]
    blocks = [
        "\n".join([f"{', '.join(one['containers'])}:", *(f"  {line}" for line in one["layers"])]) for one in found
    ]
    return "```text\n" + "\n\n".join(blocks) + "\n```"


# commands -----------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return every command with its arguments."""
    from rtdecode.__main__ import command_line

    return "\n\n".join(_commands(command_line(), 2))


def _commands(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                title = f"rtdecode {' '.join(inner.prog.split()[1:])}"
                yield f"{'#' * level} `{title}` {{#{title.replace(' ', '-')}}}"
                yield f"{helps.get(name, '')}."
                yield _arguments(inner)
                yield from _commands(inner, level + 1)


def _arguments(parser: argparse.ArgumentParser) -> str:
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        value = action.metavar or (action.dest if action.nargs != 0 else "")
        value = " ".join(value) if isinstance(value, tuple) else str(value)
        name = ", ".join(action.option_strings) or value
        shown = f"{name} {value}" if action.option_strings and value else name
        if action.choices is not None:
            value = ", ".join(str(choice) for choice in action.choices)
            shown = f"{name} {{{value}}}" if action.option_strings else name
        rows.append((f"`{shown}`", "required" if action.required else "", action.help or ""))
    return table(("argument", "", "meaning"), rows) if rows else ""


# other files of the project -----------------------------------------------------------------------------------


def file(name: str) -> str:
    """Return a page of Markdown of the top folder; its links into ``docs/`` become links of the site."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def _records() -> list[Path]:
    return sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def decisions() -> str:
    """Return a list of the decision records."""
    rows = []
    for path in _records():
        text = path.read_text(encoding="utf-8")
        head = re.match(r"# (\d+)\. (.+)\n\nDate: (\S+)\. Status: (.+?)\.\n", text)
        if head is None:
            raise ValueError(
                f"{path.name}: expected '# NUMBER. TITLE' and 'Date: YYYY-MM-DD. Status: ...' in its first lines"
            )
        rows.append((head[1], f"[{head[2]}]({path.name})", head[3], head[4]))
    return table(("", "decision", "date", "status"), rows)


MAKERS: dict[str, Callable[..., str]] = {
    "messages": messages,
    "requests": requests,
    "settings": settings,
    "structure": structure,
    "described": described,
    "arrays": arrays,
    "layout": layout,
    "columns": columns,
    "journal": journal,
    "commands": commands,
    "file": file,
    "decisions": decisions,
    "layers": layers,
}
