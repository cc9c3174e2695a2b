"""The latest decoded trials: what was decoded of each, revision by revision, and the pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any

from rtdecode import client as wire
from rtdecode import decoded
from rtdecode.publish.display.counted import Counted
from rtdecode.publish.display.notices import text
from rtdecode.publish.display.numbers import number

TRIALS = 200
REVISIONS = 8
"""Of one trial; the first ones are forgotten."""
REPLACED_PICTURES = 32  # kept a while: a page may still ask for them


class Trials:
    """State of the trials of one session.

    Parameters
    ----------
    after : Trials or None
        Those of the session before: numbers are used once, whatever the session.

    Attributes
    ----------
    pictured, entered, touches : int
        Number of the last picture, of the last trial, and of the last change of a trial.
    """

    def __init__(self, after: Trials | None = None) -> None:
        self._entries: dict[str, dict[str, Any]] = {}
        self._named = Counted()
        self._pictures: dict[int, bytes] = {}
        self._replaced: deque[int] = deque()
        self._touched: dict[str, int] = {}
        self.pictured: int = 0 if after is None else after.pictured
        self.entered: int = 0 if after is None else after.entered
        self.touches: int = 0 if after is None else after.touches + 1  # that those before are gone

    def state(self) -> list[dict[str, Any]]:
        """Return the trials, the latest last, ready for JSON."""
        return list(self._entries.values())

    def since(self, touch: int) -> dict[str, Any]:
        """Return what has changed after that change, ready for JSON.

        Returns
        -------
        dict
            ``first``, the number of the oldest trial that is kept; ``changed``, trials that are new or other than
            before, each with its ``number``.
        """
        first = next(iter(self._entries.values()))["number"] if self._entries else self.entered + 1
        return {"first": first, "changed": [e for name, e in self._entries.items() if self._touched[name] > touch]}

    def tally(self) -> list[int] | None:
        """Return how many final trials had their category named, and how many could; None if none could."""
        right, named = self._named.totals[True], self._named.totals.total()
        return [right, named] if named else None

    def picture(self, which: int) -> bytes | None:
        """Return an encoded picture by its number."""
        return self._pictures.get(which)

    def score(self, message: wire.Score, categories: Collection[str]) -> None:
        """Take a score, or that there is none."""
        shown = {"stimulus": text(message.stimulus), "condition": text(message.condition)}
        if message.invalid is not None:
            self.entry(message).update(invalid=text(message.invalid), **shown)
            return
        evidence, chance, p_content = map(number, (message.evidence, message.chance, message.p_content))
        entry = self.entry(message)
        entry.update(
            predicted=text(message.predicted),
            evidence=evidence,
            chance=chance,
            p_content=p_content,
            p_motion=number(message.p_motion),
            supported=bool(message.supported),
            refused=text(message.refused),
            plausible=[text(name) for name in message.plausible],
            unknown=[text(name) for name in message.unknown],
            null=text(message.null),
            claim=None if message.claim is None else number(message.claim),
            rank=None if message.rank is None else number(message.rank),
            pool=int(message.pool),
            **shown,
        )
        before = [one for one in entry.get("revisions", ()) if one[0] != entry["revision"]]
        told = [entry["revision"], entry["predicted"], evidence, entry["supported"]]
        entry["revisions"] = [*before, told][-REVISIONS:]
        if message.final and message.condition in categories:
            self._named.put(entry["trial"], message.predicted == message.condition)

    def caption(self, message: wire.Caption) -> None:
        """Take a caption."""
        self.entry(message)["caption"] = text(message.text)

    def drawn(self, message: wire.Preview | wire.Reconstruction) -> None:
        """Take a picture.

        Raises
        ------
        TypeError
            It is none.
        """
        if not isinstance(message.image, bytes):
            raise TypeError(f"expected a picture in bytes, got {type(message.image).__name__}")
        entry = self.entry(message)
        if "picture" in entry:
            self._replaced.append(entry["picture"])
        while len(self._replaced) > REPLACED_PICTURES:
            self._pictures.pop(self._replaced.popleft(), None)
        self.pictured += 1
        self._pictures[self.pictured] = message.image
        entry.update(picture=self.pictured, pictured=entry["revision"])

    def figures(self, message: wire.Message) -> None:
        """Take the figures of a decoded trial that are declared to be listed, those of unknown topics as well."""
        values = message.fields if isinstance(message, wire.Other) else vars(message)
        labels = decoded.figures(wire.topic_of(message))
        told = {label: values[name] for name, label in labels.items() if values.get(name) is not None}
        if told and message.invalid is None:
            shown = {label: text(value) if isinstance(value, str) else number(value) for label, value in told.items()}
            self.entry(message).setdefault("figures", {}).update(shown)

    def entry(self, message: wire.Message) -> dict[str, Any]:
        """Return what is shown of a message's trial, which may be a new one."""
        trial, revision = text(message.trial), int(message.revision or 0)
        if trial not in self._entries and len(self._entries) >= TRIALS:
            oldest = self._entries.pop(next(iter(self._entries)))
            del self._touched[oldest["trial"]]
            self._pictures.pop(oldest.get("picture", 0), None)
        if trial not in self._entries:
            self.entered += 1
            self._entries[trial] = {"trial": trial, "number": self.entered}
        entry = self._entries[trial]
        self.touches += 1
        self._touched[trial] = self.touches
        entry.update(revision=revision, final=bool(message.final))
        return entry
