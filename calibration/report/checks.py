"""Checks whether decoding is more than it seems: what is claimed where there is nothing, or something of another kind.

Shirakawa et al. 2024 (arXiv 2405.10078): pictures of kinds that training never showed, and the dimension of what comes
out. Mayo et al. 2024 (BrainBits): how narrow a bottleneck gives the same figures, and random input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.encoding.encoder import Inverted, fit_encoder
from calibration.encoding.maps import MapPrior
from calibration.nulls import FEWEST, SUPPORT_LEVEL
from calibration.participant_fit import CalibrationFit
from calibration.scaling import Scaling
from calibration.session_trials import RecordedCalibration
from calibration.targets import make_targets
from rtdecode.decode.score.adapter import components_of
from rtdecode.decode.score.encoding import mean_likelihood
from rtdecode.decode.score.evidence import margin
from rtdecode.statistics import bootstrap_interval, p_value, percentile_ranks, wilson_interval

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Components that the bottleneck lets through."""
N_RANDOM = 400
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One figure.

    Attributes
    ----------
    value : float
    interval : tuple of float
        95 %.
    chance : float or None
    n : int
        Trials.
    """

    value: float
    interval: tuple[float, float]
    chance: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
    question : str
        What it tells.
    figures : dict of str to Measured
    not_taken : str
        Why there are none.
    """

    name: str
    question: str
    figures: dict[str, Measured]
    not_taken: str = ""


def run_checks(session: RecordedCalibration, other: Float32 | None = None) -> list[Check]:
    """Take every check that a session allows.

    Parameters
    ----------
    session : RecordedCalibration
    other : ndarray of shape (n, v), float32, or None
        Betas of another participant, brought to the voxels of this one.
    """
    fit = session.calibrator.fit()
    rng = np.random.default_rng(session.bundle.provenance.seed)
    return [
        _decoded(session, fit, rng),
        *_unknown_kinds(session, rng),
        _bottleneck(session, rng),
        _random_input(session, fit, rng),
        _oracle(session, fit),
        _dimensions(session, fit),
        _nothing(fit, "other participant's brain", "What is claimed of somebody else's responses?", other,
                 "give the session of another participant with --other"),
        _nothing(fit, "rest", "What is claimed where nothing was shown?", session.rest,
                 "trials follow each other too fast to leave rest between them"),
        _nothing(fit, "pictures without content", "What is claimed of them? Evidence was learned from these.",
                 session.nulls, "calibration showed none"),
    ]  # fmt: skip


def mean_of(values: Float64, chance: float | None, rng: np.random.Generator) -> Measured:
    """Mean of a figure over trials."""
    return Measured(
        value=float(values.mean()),
        interval=bootstrap_interval(values, rng, resamples=_RESAMPLES),
        chance=chance,
        n=len(values),
    )


def share_of(hits: NDArray[np.bool_], chance: float | None) -> Measured:
    """Share of trials."""
    return Measured(
        value=float(hits.mean()), interval=wilson_interval(int(hits.sum()), len(hits)), chance=chance, n=len(hits)
    )


def supported(fit: CalibrationFit, betas: Float32) -> NDArray[np.bool_]:
    """Whether each beta (n, v) passes the gate of the session."""
    evidence, model = fit.evidence, fit.encoding
    found = []
    for beta in betas:
        reading = model.read(beta)
        p_content, p_motion = evidence.p_content(model.content_of(reading)), evidence.p_motion(reading.distance)
        found.append(not evidence.refusal(p_content, p_motion, evidence.p_signal(reading.signal)))
    return np.array(found, dtype=np.bool_)


def _decoded(session: RecordedCalibration, fit: CalibrationFit, rng: np.random.Generator) -> Check:
    """Measure the trials that came after calibration."""
    name, question = "decoded trials", "How well are the trials after calibration decoded?"
    if len(session.decoded) < 2:
        return Check(name=name, question=question, figures={}, not_taken="fewer than two trials were decoded")
    candidates, model = session.candidates, fit.encoding
    places = np.array([candidates.names.index(stimulus) for stimulus, _ in session.decoded])
    betas = np.stack([beta for _, beta in session.decoded])
    pool = np.unique(places)
    components = model.describe(candidates.tokens[pool])
    readings = [model.read(beta) for beta in betas]
    scores = np.stack([model.pictures_of(reading, components) for reading in readings])
    right = (
        np.array([int(model.categories_of(reading).argmax()) for reading in readings]) == candidates.category[places]
    )
    own = np.searchsorted(pool, places)
    return Check(
        name=name,
        question=question,
        figures={
            "percentile rank of the picture shown among those decoded": mean_of(
                percentile_ranks(scores)[np.arange(len(own)), own], 0.5, rng
            ),
            "category named right": share_of(right, 1 / len(candidates.categories)),
            "supported": share_of(supported(fit, betas), None),
        },
    )


class _Plain:
    """The calibration's trials, standardised, with components of their pictures."""

    def __init__(self, session: RecordedCalibration) -> None:
        self.betas, self.shown = session.calibrator.collected()
        self.scaling = Scaling(self.betas)
        self.responses = self.scaling(self.betas)
        count = max(session.bundle.provenance.components)
        self.targets = make_targets(session.candidates.tokens[self.shown], session.candidates.groups, most=count)
        variance = self.targets.variance
        self.spectrum = np.concatenate(
            [variance[block] / variance[block].sum() / len(self.targets.blocks) for block in self.targets.blocks]
        )

    def model(self, rest: NDArray[np.int64], kept: Any = slice(None)) -> Inverted:
        """Return a model of some trials that sees some components only."""
        prior = MapPrior(covariance=np.diag(self.spectrum[kept]))
        components = self.targets.components[rest][:, kept]
        return fit_encoder(self.responses[rest], components, [lambda _: prior], parts=[], shown=self.shown[rest]).whole

    def scores(
        self, rest: NDArray[np.int64], responses: Float32, pictures: Float64, kept: Any = slice(None)
    ) -> Float64:
        """Log-likelihood of pictures by such a model."""
        return self.model(rest, kept).scores(responses, pictures[:, kept])


def _unknown_kinds(session: RecordedCalibration, rng: np.random.Generator) -> list[Check]:
    """Leave each category out of the calibration, and look at what is said of its pictures."""
    plain, candidates = _Plain(session), session.candidates
    category = candidates.category[plain.shown]
    nulls = plain.scaling(session.nulls) if len(session.nulls) >= FEWEST else plain.responses[:0]
    near, noise_range = (session.bundle.encoding[name].tolist() for name in ("near", "noise_range"))
    among, within, content = [], [], []
    named: dict[str, tuple[str, NDArray[np.bool_]]] = {}
    for number, kind in enumerate(candidates.categories):
        held, rest = np.flatnonzero(category == number), np.flatnonzero(category != number)
        if len(np.unique(plain.shown[held])) < 2 or len(np.unique(category[rest])) < 2:
            continue
        pictures, place = np.unique(plain.shown, return_index=True)
        components = plain.targets.components[place]
        model, responses = plain.model(rest), np.concatenate([plain.responses[held], nulls])
        scores = model.scores(responses, components)
        own = np.searchsorted(pictures, plain.shown[held])
        among.append(percentile_ranks(scores[: len(held)])[np.arange(len(held)), own])
        same = np.flatnonzero(candidates.category[pictures] == number)
        within.append(percentile_ranks(scores[: len(held)][:, same])[np.arange(len(held)), np.searchsorted(same, own)])
        known = candidates.category[pictures] != number
        told = mean_likelihood(
            scores[: len(held)][:, known], candidates.category[pictures][known], len(candidates.categories)
        )
        told[:, number] = -np.inf
        best = told.argmax(1)
        often = int(np.bincount(best).argmax())
        named[kind] = candidates.categories[often], best == often
        if len(nulls):
            ungrouped = np.full(components.shape[1], -1)
            held_content = model.contents(
                responses, components[known], ungrouped, 0, near=near[0], noise_range=noise_range
            )[0]
            p_content = [p_value(held_content[len(held) :], one) for one in held_content[: len(held)]]
            content.append(np.array(p_content) <= SUPPORT_LEVEL)
    question = "What is said of pictures of a category that calibration never showed?"
    if not among:
        return [
            Check(name="unknown categories", question=question, figures={}, not_taken="too few categories were shown")
        ]
    figures = {
        "percentile rank of the picture shown among all of calibration": mean_of(np.concatenate(among), 0.5, rng),
        "percentile rank among those of its own category": mean_of(np.concatenate(within), 0.5, rng),
    }
    if content:
        figures["supported (a picture is found in it)"] = share_of(np.concatenate(content), None)
    figures |= {f"{kind} is taken for {first}": share_of(hits, None) for kind, (first, hits) in named.items()}
    return [Check(name="unknown categories", question=question, figures=figures)]


def _bottleneck(session: RecordedCalibration, rng: np.random.Generator) -> Check:
    """Let through but the first components of each picture."""
    plain = _Plain(session)
    order = np.argsort(-plain.spectrum, kind="stable")
    figures = {}
    for width in [w for w in WIDTHS if w < len(order)] + [len(order)]:
        kept = np.sort(order[:width])
        ranks = []
        for part in session.calibrator.folds():
            rest = np.setdiff1d(np.arange(len(plain.shown)), part)
            pictures, place, own = np.unique(plain.shown[part], return_index=True, return_inverse=True)
            if len(pictures) < 2:
                continue
            scores = plain.scores(rest, plain.responses[part], plain.targets.components[part][place], kept)
            ranks.append(percentile_ranks(scores)[np.arange(len(part)), own])
        if ranks:
            figures[f"{width} of {len(order)} components"] = mean_of(np.concatenate(ranks), 0.5, rng)
    question = "How many components of a picture does identification need? (Held-out calibration trials.)"
    return Check(name="bottleneck", question=question, figures=figures)


def _random_input(session: RecordedCalibration, fit: CalibrationFit, rng: np.random.Generator) -> Check:
    """Decode noise with the spread of calibration's betas."""
    betas, _ = session.calibrator.collected()
    noise = np.nanmean(betas, 0) + np.nanstd(betas, 0) * rng.standard_normal((N_RANDOM, betas.shape[1]))
    model, candidates = fit.encoding, session.candidates
    readings = [model.read(beta) for beta in noise.astype(np.float32)]
    pictures = model.describe(candidates.tokens)
    scores = np.stack([model.pictures_of(reading, pictures) for reading in readings])
    truth = rng.integers(len(candidates.names), size=N_RANDOM)
    named = np.array([int(model.categories_of(reading).argmax()) for reading in readings])
    certain = [
        fit.evidence.probability(float(margin(model.categories_of(r))), 1 / len(candidates.categories))
        for r in readings
    ]
    return Check(
        name="random input",
        question="What comes out when noise goes in?",
        figures={
            "percentile rank of a picture drawn at random": mean_of(
                percentile_ranks(scores)[np.arange(N_RANDOM), truth], 0.5, rng
            ),
            "category named right": share_of(named == candidates.category[truth], 1 / len(candidates.categories)),
            "evidence for the category": mean_of(np.array(certain), 1 / len(candidates.categories), rng),
            "supported": share_of(supported(fit, noise.astype(np.float32)), None),
        },
    )


def _oracle(session: RecordedCalibration, fit: CalibrationFit) -> Check:
    """Give the decoder the components of each picture themselves, as if responses held no noise."""
    point = session.calibrator.status()
    model, candidates = fit.encoding, session.candidates
    components = model.describe(candidates.tokens)
    exact = components @ model.information.astype(np.float64)  # what a response without noise would say
    scores = exact @ components.T - 0.5 * np.einsum("nk,nk->n", exact, components)
    ranks = np.diagonal(percentile_ranks(scores))
    rng = np.random.default_rng(0)
    figures = {"percentile rank with responses as the encoding model expects them": mean_of(ranks, 0.5, rng)}
    if point.ceiling is not None:
        low, high = point.ceiling_interval
        figures["percentile rank of a decoder that knew each response exactly"] = Measured(
            value=point.ceiling, interval=(low, high), chance=0.5, n=point.trials
        )
    return Check(name="oracle ceiling", question="What would the decoder reach at best?", figures=figures)


def _dimensions(session: RecordedCalibration, fit: CalibrationFit) -> Check:
    """Compare the spread of what is decoded with that of the pictures."""
    betas, shown = session.calibrator.collected()
    if len(session.decoded) > 2:
        betas = np.stack([beta for _, beta in session.decoded])
        shown = np.array([session.candidates.names.index(stimulus) for stimulus, _ in session.decoded])
    tokens = np.stack([fit.adapter.predict(fit.adapter.chosen(beta)) for beta in betas]).astype(np.float64)
    true = components_of(session.candidates.tokens[shown], fit.adapter.basis, fit.adapter.token_mean)

    def measured(values: Float64) -> Measured:
        n, value = len(values), effective_rank(values)
        without = np.array([effective_rank(np.delete(values, i, axis=0)) for i in range(n)])
        away = 1.96 * float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))  # the jackknife
        return Measured(value=value, interval=(value - away, value + away), chance=None, n=n)

    return Check(
        name="effective rank",
        question="In how many dimensions do outputs differ, against the pictures that were shown?",
        figures={"decoded": measured(tokens), "shown": measured(true)},
    )


def effective_rank(values: Float64) -> float:
    """Exponential of the entropy of the variance along principal axes: Roy & Vetterli, EUSIPCO 2007."""
    strengths = np.square(np.linalg.svd(values - values.mean(0), compute_uv=False))
    if not strengths.sum() > 0:
        return 1.0
    shares = strengths / strengths.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _nothing(fit: CalibrationFit, name: str, question: str, betas: Float32 | None, absent: str) -> Check:
    if betas is None or not len(betas):
        return Check(name=name, question=question, figures={}, not_taken=absent)
    return Check(name=name, question=question, figures={"supported": share_of(supported(fit, betas), None)})
