"""The figures of a session, each with its chance level, its sample and an interval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.decode.loading import load_embedder
from rtdecode.decode.resample import bilinear
from rtdecode.errors import EngineError, SettingsError
from rtdecode.evaluate import judges as networks
from rtdecode.evaluate import metrics, texts, words
from rtdecode.evaluate.brain_judge import BrainJudge
from rtdecode.evaluate.recorded_session import Pairs
from rtdecode.packs import EnginePack
from rtdecode.statistics import bootstrap_interval

CANDIDATES = 300
DRAWS = 30
_RESAMPLES = 2000
_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measure.

    Attributes
    ----------
    name : str
    value : float
        Mean over the trials.
    interval : tuple of float
        95 %, by resampling trials.
    chance : float or None
        What guessing gives; None where that is not known.
    n : int
        Trials.
    lower_is_better : bool
    """

    name: str
    value: float
    interval: tuple[float, float]
    chance: float | None
    n: int
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Measured:
    """A measure of each trial, before it is a figure."""

    name: str
    each: NDArray[np.float64]
    chance: float | None = None
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """A measure that could not be taken, and why."""

    name: str
    reason: str


def evaluate(
    pairs: Pairs,
    *further: Pairs,
    pack: EnginePack | None,
    weights: Path,
    references: Mapping[str, Sequence[str]] | None = None,
    judge: BrainJudge | None = None,
    legacy: bool = False,
) -> tuple[list[Figure], list[Unavailable]]:
    """Take the papers' measures, as far as their weights are on this machine.

    Parameters
    ----------
    pairs : Pairs
    *further : Pairs
        The same trials decoded again: of each trial the mean over all of them counts.
    pack : EnginePack or None
        Whose embedder judges too.
    weights : Path
        Folder of the published networks' weights.
    references : mapping of str to sequence of str, or None
        Captions of each stimulus.
    judge : BrainJudge or None
        Judges the pictures by the brain that they were decoded from.
    legacy : bool
        Tell two-way identification also as `two_way_each` counts it with `legacy`.
    """
    missing: list[Unavailable] = []
    each_time: list[list[_Measured]] = []
    for one in (pairs, *further):
        found, missing = _measured(one, pack, weights, references or {}, judge, legacy=legacy)
        each_time.append(found)
    return [_figure(same) for same in zip(*each_time, strict=True)], missing


def _measured(
    pairs: Pairs,
    pack: EnginePack | None,
    weights: Path,
    references: Mapping[str, Sequence[str]],
    judge: BrainJudge | None,
    *,
    legacy: bool,
) -> tuple[list[_Measured], list[Unavailable]]:
    found = [
        _Measured(name="PixCorr", each=metrics.pixcorr(pairs.true, pairs.made)),
        _Measured(name="SSIM", each=metrics.ssim(pairs.true, pairs.made)),
    ]
    missing: list[Unavailable] = []
    for feature in networks.FEATURES:
        try:
            compute = networks.load(feature, weights)
        except FileNotFoundError as error:
            missing.append(Unavailable(name=feature.name, reason=f"no weights at {error}"))
        except (ImportError, RuntimeError, ValueError, KeyError) as error:
            missing.append(Unavailable(name=feature.name, reason=f"{type(error).__name__}: {error}"))
        else:
            true, made = compute(pairs.true), compute(pairs.made)
            found += _compared(feature.name, true, made, distance=feature.distance, legacy=legacy)
    try:
        if pack is None:
            raise EngineError("the session's pack is not on this machine (--pack NAME)")
        true, made = (embedded(pack, shown).reshape(len(shown), -1) for shown in (pairs.true, pairs.made))
    except EngineError as error:
        missing += [Unavailable(name=name, reason=str(error)) for name in ("pack's embedder", "retrieval")]
    else:
        found += _compared("pack's embedder", true, made, distance=False, legacy=legacy)
        if pairs.tokens is None or pairs.tokens.shape != true.shape:
            missing.append(Unavailable(name="retrieval", reason="the session's journal holds no such embeddings"))
        else:
            found += _retrieval(pairs.tokens, true)
    if judge is not None:
        found += _brain(pairs, judge, pack)
    _captions(pairs, references, weights, found, missing)
    return found, missing


def _brain(pairs: Pairs, judge: BrainJudge, pack: EnginePack | None) -> list[_Measured]:
    """Correlation over voxels of what an encoder predicts of the pictures with what was measured, per region."""
    if pack is None:
        raise EngineError("brain correlation: expected the pack that the encoder was fitted with (--pack NAME)")
    figures = []
    for name, shown in (("", pairs.made), (", of the pictures shown", pairs.true)):
        for region, each in judge.correlations(pairs, embedded(pack, shown)).items():
            figures.append(_Measured(name=f"brain correlation, {region}{name}", each=each, chance=0.0))
    return figures


def read_references(path: Path) -> dict[str, list[str]]:
    """Read captions: a JSON object of stimulus to one caption or a list of them.

    Raises
    ------
    SettingsError
        It is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: expected JSON of stimulus to captions: {error}"]) from None
    if not isinstance(content, dict):
        raise SettingsError([f"{path}: expected a JSON object of stimulus to captions, got {type(content).__name__}"])
    return {name: [said] if isinstance(said, str) else [str(one) for one in said] for name, said in content.items()}


def _figure(same: Sequence[_Measured]) -> Figure:
    """Make a figure of a measure that was taken once or several times of the same trials."""
    first = same[0]
    each = np.mean([np.asarray(one.each, np.float64) for one in same], axis=0)
    each = each[np.isfinite(each)]
    return Figure(
        name=first.name,
        value=float(each.mean()),
        interval=bootstrap_interval(each, np.random.default_rng(0), resamples=_RESAMPLES),
        chance=first.chance,
        n=len(each),
        lower_is_better=first.lower_is_better,
    )


def _compared(
    name: str, true: NDArray[np.float32], made: NDArray[np.float32], *, distance: bool, legacy: bool
) -> list[_Measured]:
    if distance:
        away = metrics.correlation_distance(true, made)
        return [_Measured(name=f"{name}, distance", each=away, lower_is_better=True)]
    found = [_Measured(name=f"{name}, two-way", each=metrics.two_way_each(true, made), chance=0.5)]
    if legacy:
        each = metrics.two_way_each(true, made, legacy=True)
        chance = 0.5 - 1 / (len(true) - 1)
        found.append(_Measured(name=f"{name}, two-way, legacy", each=each, chance=chance))
    return found


def _retrieval(brain: NDArray[np.float32], images: NDArray[np.float32]) -> list[_Measured]:
    """Top-1 both ways among 300 candidates, 30 draws of them, or among all where there are fewer."""
    n = len(brain)
    size = min(n, CANDIDATES)
    draws = [np.arange(n)] if size == n else list(metrics.candidate_draws(n, size, DRAWS))
    figures = []
    for name, hits in (("image retrieval", metrics.image_retrieval), ("brain retrieval", metrics.brain_retrieval)):
        total, seen = np.zeros(n), np.zeros(n)
        for rows in draws:
            total[rows] += hits(brain[rows], images[rows])
            seen[rows] += 1
        drawn = seen > 0
        figures.append(_Measured(name=f"{name}, top-1 of {size}", each=total[drawn] / seen[drawn], chance=1 / size))
    return figures


def embedded(pack: EnginePack, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Tokens (n, t, d) of pictures (n, 3, h, w) in 0..1 by a pack's embedder.

    Raises
    ------
    EngineError
        The pack has none, or what runs it is not installed.
    """
    embedder = load_embedder(pack)
    px = embedder.picture_px
    fitting = pictures if px is None else bilinear(pictures, px[0])
    return np.concatenate([embedder.run(fitting[i : i + _BATCH]) for i in range(0, len(fitting), _BATCH)])


def _captions(
    pairs: Pairs,
    references: Mapping[str, Sequence[str]],
    weights: Path,
    found: list[_Measured],
    missing: list[Unavailable],
) -> None:
    known = [i for i, name in enumerate(pairs.stimuli) if references.get(name)]
    measures: dict[str, texts.Alike] = {"ROUGE-1": words.rouge_1, "ROUGE-L": words.rouge_l}
    for measure in texts.TEXTS:
        try:
            measures[measure.name] = texts.load(measure, weights)
        except FileNotFoundError as error:
            missing.append(Unavailable(name=measure.name, reason=f"no weights at {error}"))
        except (ImportError, RuntimeError, ValueError, KeyError, OSError) as error:
            missing.append(Unavailable(name=measure.name, reason=f"{type(error).__name__}: {error}"))
    for name, alike in measures.items():
        if known:
            each = [alike(pairs.captions[i], references[pairs.stimuli[i]]) for i in known]
            found.append(_Measured(name=name, each=np.array(each, np.float64)))
        else:
            missing.append(Unavailable(name=name, reason="no captions of the shown pictures (--captions FILE)"))
