"""What becomes of a film that is no longer followed, by the rule of a protocol: without a scanner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from rtdecode import client as wire
from rtdecode.packs.film_prediction import FilmPrediction, PredictionTable
from rtdecode.protocol_file import FilmRule
from rtdecode.records import FilmStart, Stamp
from rtdecode.score_settings import FilmSettings
from rtdecode.session.films import Films
from rtdecode.simulate.film_parcels import FilmParcels

VOLUMES, PARCELS, T_R_S = 140, 40, 1.5
NAMES = [str(place) for place in range(PARCELS)]


def films(world: FilmParcels, rule: FilmRule | None) -> Films:
    about = PredictionTable(film="f", duration_s=VOLUMES * T_R_S, t_r_s=T_R_S, delay_s=0.0, parcels=NAMES)
    predicted = world.predicted(1, VOLUMES).astype(np.float32)
    one = FilmPrediction(about=about, predicted=predicted, profiles={})
    return Films(FilmSettings(parcels="blocks"), {"f": one, "calm": one}, rule)


def watched(rule: FilmRule | None, again_at: int | None = None) -> tuple[list[wire.StimulusMatch], Films]:
    """Follow a film for 60 volumes, and close the eyes for the rest."""
    world = FilmParcels(seed=2, parcels=PARCELS, t_r_s=T_R_S, correlation=0.5)
    followed = np.arange(VOLUMES) < 60
    values = world.measured(world.predicted(1, VOLUMES), 1, following=followed)
    found = films(world, rule)
    found.begin(FilmStart(run=1, film="f", onset_s=0.0))
    told = []
    for place, row in enumerate(values):
        if place == again_at:
            found.begin(FilmStart(run=1, film="calm", onset_s=place * T_R_S))
        stamp = Stamp(session="s", run=1, volume=place, received_s=0.0, received_mono_s=0.0)
        parcels = {"blocks": dict(zip(NAMES, row.tolist(), strict=True))}
        volume: Any = SimpleNamespace(stamp=stamp, t_r_s=T_R_S, parcels=parcels)
        match = found.match(volume)
        assert match is not None
        told.append(match)
    return told, found


def test_another_film_is_asked_for_once_and_told_of_until_one_is_announced() -> None:
    rule = FilmRule(below_z=1.0, volumes=5, action="switch", film="calm")
    told, found = watched(rule, again_at=130)
    asked = [place for place, one in enumerate(told) if one.asks]
    assert asked == list(range(asked[0], 130))
    assert 60 < asked[0] < 110
    assert {(told[place].asks, told[place].next_film) for place in asked} == {("switch", "calm")}
    (command,) = found.decisions()
    assert (command.command, command.target) == ("film", "calm")
    assert command.token == f"film rule, run 1, volume {asked[0]}"
    assert list(found.decisions()) == []


def test_the_match_must_be_low_for_so_many_volumes_of_a_whole_window() -> None:
    told, _ = watched(FilmRule(below_z=1.0, volumes=5, action="pause"))
    low = [one.invalid is None and one.window == 20 and one.z < 1.0 for one in told]
    first = next(place for place in range(4, VOLUMES) if all(low[place - 4 : place + 1]))
    assert [bool(one.asks) for one in told] == [place >= first for place in range(VOLUMES)]


def test_without_a_rule_nothing_is_asked() -> None:
    told, found = watched(None)
    assert not any(one.asks for one in told)
    assert list(found.decisions()) == []
