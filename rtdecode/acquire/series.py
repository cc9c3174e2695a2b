"""Which series become runs, and which of their volumes: by what the files say of themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from rtdecode.acquire.stored import MAGNITUDE, Identity, Origin
from rtdecode.settings import SeriesRule

_SPLIT = "MFSPLIT"
_WORDS = {
    "MOCO": "motion-corrected by the scanner",
    "LOCALIZER": "a localizer",
    "DIFFUSION": "diffusion-weighted",
    "PERFUSION": "perfusion-weighted",
    "ASL": "perfusion-weighted",
}
_NAMES = {
    r"mocoseries": "motion-corrected by the scanner",
    r".*(localizer|scout).*": "a localizer",
    r".*_sbref": "a single-band reference",
}


class Selection:
    """Decides once of each series.

    Parameters
    ----------
    rules : sequence of SeriesRule
        The first that fits decides. Where none fits, a series is left out if there is a rule that takes series in;
        else if its files tell that it is no BOLD series of magnitude images.
    echo : int
        The echo that is used.
    """

    def __init__(self, rules: Sequence[SeriesRule], echo: int) -> None:
        self._rules = rules
        self._echo = echo
        self._decided: dict[str, str | None] = {}
        self._told: set[tuple[str, int | None, str]] = set()

    def refusal(self, identity: Identity, origin: Origin) -> str | None:
        """Return why a volume or slice is not used; None if it is."""
        uid = identity.series_uid
        if uid not in self._decided:
            self._decided[uid] = self._of_series(identity, origin)
        name = f"series {identity.series_number}" if identity.series_number else "the series"
        why = self._decided[uid]
        if why is not None:
            return f"left out: {name} is {why}; [scanner] series chooses"
        if identity.component != MAGNITUDE:
            return f"left out: component {identity.component} of {name}, only magnitude is used"
        if identity.echo not in (None, self._echo):
            return f"left out: echo {identity.echo} of {name}, [scanner] echo is {self._echo}"
        return None

    def refuses(self, identity: Identity) -> bool:
        """Whether the series is known to be left out."""
        return self._decided.get(identity.series_uid) is not None

    def leave_out(self, identity: Identity, why: str) -> None:
        """Let a series be refused from now on."""
        self._decided[identity.series_uid] = why

    def is_news(self, identity: Identity) -> bool:
        """Whether what is left out, a series or one of its parts, is asked about for the first time."""
        whole = self.refuses(identity)
        part = identity.series_uid, None if whole else identity.echo, "" if whole else identity.component
        news = part not in self._told
        self._told.add(part)
        return news

    def wanted(self, identity: Identity, origin: Origin) -> bool:
        """Whether a rule of the settings takes the series in."""
        rule = self._rule(identity, origin)
        return rule is not None and rule.use

    def _rule(self, identity: Identity, origin: Origin) -> SeriesRule | None:
        return next((rule for rule in self._rules if _fits(rule, identity, origin)), None)

    def _of_series(self, identity: Identity, origin: Origin) -> str | None:
        rule = self._rule(identity, origin)
        if rule is not None:
            return None if rule.use else "left out by the settings"
        if any(rule.use for rule in self._rules):
            return "not among those of the settings"
        return _no_bold(origin)


def _fits(rule: SeriesRule, identity: Identity, origin: Origin) -> bool:
    if rule.number is not None and rule.number != identity.series_number:
        return False
    if rule.image_type is not None and rule.image_type.upper() not in map(str.upper, origin.image_type):
        return False
    pattern = None if rule.description is None else rule.description.lower()
    return pattern is None or any(fnmatchcase(name.lower(), pattern) for name in origin.names or ("",))


def _no_bold(origin: Origin) -> str | None:
    """Say what else than a BOLD series of an echo-planar sequence its labels make it; None if nothing."""
    words = tuple(word.upper() for word in origin.image_type)
    for word in (*words, (origin.contrast or "").upper()):
        if word in _WORDS:
            return _WORDS[word]
    if words[:1] == ("DERIVED",) and _SPLIT not in words:
        return "derived"
    if words[1:2] == ("SECONDARY",):
        return "secondary"
    for name in origin.names:
        for pattern, what in _NAMES.items():
            if re.fullmatch(pattern, name, re.IGNORECASE):
                return what
    if origin.echo_planar is False:
        return "of a sequence that is not echo-planar"
    return "announced as a single volume" if origin.volumes == 1 else None
