"""What is said in a film, word by word, from a table or from subtitles."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

from rtdecode.errors import SettingsError

_CUE = re.compile(r"(\d+):(\d+):(\d+)[,.](\d+)\s*-->\s*(\d+):(\d+):(\d+)[,.](\d+)")
_TAG = re.compile(r"<[^>]*>|\{[^}]*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A spoken word.

    Attributes
    ----------
    onset_s, duration_s : float
        Seconds of the film.
    text : str
    """

    onset_s: float
    duration_s: float
    text: str

    @property
    def end_s(self) -> float:
        """When it is over, seconds of the film."""
        return self.onset_s + self.duration_s


def read_transcript(path: Path) -> list[Word]:
    """Read a transcript, in the order of the words' ends.

    Parameters
    ----------
    path : Path
        ``.tsv`` with columns onset, duration and word, seconds; or ``.srt``, whose words share the time of their cue.

    Raises
    ------
    SettingsError
        It is neither, cannot be read, or a time is none; the line is named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"--transcript: expected a readable text file: {path}: {error}"]) from None
    if path.suffix.lower() not in (".tsv", ".srt"):
        raise SettingsError([f"--transcript: expected a .tsv or .srt file, got {path.name}"])
    found = _table(path, text) if path.suffix.lower() == ".tsv" else _subtitles(path, text)
    return sorted(found, key=lambda word: (word.end_s, word.onset_s))


def _table(path: Path, text: str) -> list[Word]:
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    if not {"onset", "duration", "word"} <= set(rows.fieldnames or ()):
        raise SettingsError([f"{path}: expected columns onset, duration and word, got {rows.fieldnames}"])
    found = []
    for number, row in enumerate(rows, 2):
        try:
            onset_s, duration_s = float(row["onset"]), float(row["duration"])
        except (TypeError, ValueError):
            onset_s = duration_s = math.nan
        if not (math.isfinite(onset_s) and onset_s >= 0 and math.isfinite(duration_s) and duration_s >= 0):
            raise SettingsError([f"{path}: line {number}: expected onset and duration in seconds, got {dict(row)}"])
        if word := (row["word"] or "").strip():
            found.append(Word(onset_s=onset_s, duration_s=duration_s, text=word))
    return found


def _subtitles(path: Path, text: str) -> list[Word]:
    found: list[Word] = []
    for number, block in enumerate(re.split(r"\n\s*\n", text.strip()), 1):
        lines = block.splitlines()
        place = next((i for i, line in enumerate(lines) if "-->" in line), None)
        cue = None if place is None else _CUE.search(lines[place])
        if place is None or cue is None:
            raise SettingsError([f"{path}: cue {number}: expected a line 00:00:01,000 --> 00:00:02,000"])
        begin_s, end_s = (_seconds(cue.groups()[part : part + 4]) for part in (0, 4))
        words = _TAG.sub(" ", " ".join(lines[place + 1 :])).split()
        step_s = max(end_s - begin_s, 0.0) / max(len(words), 1)
        found += [
            Word(onset_s=begin_s + order * step_s, duration_s=step_s, text=word) for order, word in enumerate(words)
        ]
    return found


def _seconds(parts: tuple[str, ...]) -> float:
    hours, minutes, seconds, milliseconds = parts
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds) + int(milliseconds.ljust(3, "0")[:3]) / 1000
