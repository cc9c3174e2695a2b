"""From the trials of a calibration to a decoder, and to what its word is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from calibration import linear_heads
from calibration.adapter_fit import Trials, fit_adapter_to, known
from calibration.encoding.encoder import Encoder, Inverted, fit_encoder
from calibration.identification import pooled
from calibration.learned_prior import statistics_tensors
from calibration.linear_heads import LinearHead
from calibration.nulls import DRAWS, SUPPORT_LEVEL, Nulls, brought_over, find_nulls, without_both
from calibration.scaling import Scaling
from calibration.signal import Signal, find_signal
from calibration.targets import Targets, rows
from calibration.weighing import fit_logistic, weigh, weighed_apart
from rtdecode.decode.score.adapter import Adapter, components_of
from rtdecode.decode.score.candidates import Candidates
from rtdecode.decode.score.content import NEAR, group_of
from rtdecode.decode.score.encoding import EncodingModel, mean_likelihood
from rtdecode.decode.score.evidence import Evidence, margin
from rtdecode.packs.participant_bundle import CurvePoint, Figures
from rtdecode.statistics import percentile_ranks, permutation_p

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

ALPHA = 0.02
"""Level of the test that opens evidence. Trials of cross-validation are not independent, which permutations of the
finished scores do not know: on pure noise in 32 blocks, this level is passed in 4 % of cases (.05 in 10 %).
"""
N_PERMUTATIONS = 1999
_LEAST_NOISE = 0.5
"""Of what is usual in calibration, that a response's noise is taken for: nothing is divided by next to nothing."""
_MOST_NOISE = float(np.finfo(np.float32).max)
"""No limit; a bundle with an infinity in it would be refused."""
_FEWEST_GROUPS = 4
"""Of trials held out together, from which the token ridge is nested."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationFit:
    """A finished calibration.

    Attributes
    ----------
    adapter : Adapter
    encoding : EncodingModel
    evidence : Evidence
    figures : Figures
        Held-out, and choices, for the provenance.
    statistics : dict of str to array
        For those who learn from many participants.
    """

    adapter: Adapter
    encoding: EncodingModel
    evidence: Evidence
    figures: Figures
    statistics: dict[str, NDArray[Any]]

    @property
    def can_support(self) -> bool:
        """Whether there are nulls enough for any trial to be told from them."""
        return self.evidence.p_content(np.inf) <= SUPPORT_LEVEL


def fit_participant(
    trials: Trials, candidates: Candidates, point: CurvePoint, *, leave_out: Literal["trial", "run"], seed: int
) -> CalibrationFit:
    """Fit encoding model, linear heads and adapter, and learn evidence from held-out trials.

    Parameters
    ----------
    trials : Trials
    candidates : Candidates
    point : CurvePoint
        Present one of the learning curve.
    leave_out : {"trial", "run"}
        What is held out together.
    seed : int
        Of permutations.

    Raises
    ------
    CalibrationError
        No voxel varies, or all stimuli have the same tokens.
    """
    scaling = Scaling(trials.betas)
    responses = scaling(trials.betas)
    targets, priors = known(trials, candidates, responses, scaling)
    encoder = fit_encoder(
        responses,
        targets.components,
        priors,
        parts=trials.parts,
        shown=trials.shown,
        further=without_both(trials.parts, trials.shown),
    )
    judged = _Judged(trials, candidates, targets, responses, encoder)
    rng = np.random.default_rng(seed)
    p_category = permutation_p(percentile_ranks(judged.categories), judged.category, rng, resamples=N_PERMUTATIONS)
    null_alone = ~np.isin(trials.null_run, trials.run)
    nulls = find_nulls(
        encoder,
        responses,
        targets.components,
        scaling(trials.null_betas),
        trials.null_places,
        null_alone,
        trials.shown,
        judged.category,
        rng,
    )
    if nulls.kind == "null trials":
        judged.look_wider()
    signal = find_signal(encoder, responses, trials.run, scaling(trials.rest_betas), trials.rest_run, trials.parts)
    evidence = _evidence(judged, nulls, signal, p_category, rng)
    fitted = fit_adapter_to(targets, responses, encoder, trials.parts, scaling)
    adapter = fitted.adapter
    percentile = float(pooled(judged.identified))
    figures = Figures(
        trials=len(responses),
        earlier_trials=trials.earlier,
        earlier_session=trials.earlier_session,
        null_trials=len(trials.null_betas),
        null=nulls.kind,
        null_statistics=len(evidence.content_null),
        rest=len(evidence.rest),
        voxels=len(encoder.whole.voxels),
        mask_voxels=trials.betas.shape[1],
        components=[block.stop - block.start for block in targets.blocks],
        noise_models=_noise_models(encoder),
        group_prior="" if trials.prior is None else trials.prior.identity,
        group_weight=0.0 if trials.prior is None else _weight_of_first(encoder),
        heads=dict(zip(_HEADS, judged.weights.tolist(), strict=True)),
        group_r2=[round(float(v), 4) for v in adapter.group_r2],
        live_components=int(np.sum(fitted.gain > 0)),
        category_accuracy=float(np.mean(judged.categories.argmax(1) == judged.category)),
        category_p=p_category,
        percentile=point.percentile,
        percentile_interval=point.interval,
        percentile_p=point.p_value,
        decoder_percentile=None if np.isnan(percentile) else percentile,
        leave_out=leave_out,
        seed=seed,
        categories=list(candidates.categories),
        stimuli=[candidates.names[i] for i in np.unique(trials.shown)],
    )
    return CalibrationFit(
        adapter=adapter,
        encoding=judged.model(scaling, signal),
        evidence=evidence,
        figures=figures,
        statistics=statistics_tensors(targets, responses, scaling.voxels),
    )


def _weight_of_first(encoder: Encoder) -> float:
    return float(sum(weight for (place, _, _), weight in encoder.weights.items() if place == 0))


def _noise_models(encoder: Encoder) -> dict[str, float]:
    found: dict[str, float] = {}
    for (_, size, rank), weight in encoder.weights.items():
        name = f"{size} voxels, rank {rank}"
        found[name] = found.get(name, 0.0) + weight
    return {name: weight for name, weight in found.items() if weight >= 0.005}


_HEADS = ("encoding", "discriminant", "tokens")


class _Judged:
    """Calibration trials as decoders see them that were fitted without them, and the decoder of all."""

    def __init__(
        self, trials: Trials, candidates: Candidates, targets: Targets, responses: Float32, encoder: Encoder
    ) -> None:
        self._responses = responses
        self._targets = targets
        self._trials = trials
        self._encoder = encoder
        self._category_of = candidates.category
        self._group = group_of(targets.basis, candidates.groups)
        self._n_groups = len(candidates.group_names)
        self._n = len(candidates.categories)
        self.category = candidates.category[trials.shown]
        self._prototypes = components_of(candidates.prototypes, targets.basis, targets.token_mean)
        self._shown_components = {int(i): targets.components[trials.shown == i][0] for i in np.unique(trials.shown)}
        heads = np.empty((len(_HEADS), len(responses), self._n))
        self._held_heads: list[tuple[LinearHead, ...]] = []
        self.identified: list[tuple[Float64, Ints]] = []
        self.distances = np.empty(len(responses))
        every = np.arange(len(responses))
        for place, (part, held) in enumerate(zip(encoder.parts, encoder.held, strict=True)):
            rest = np.setdiff1d(every, part)
            linear = self._linear(rest, held)
            self._held_heads.append(linear)
            if place >= len(trials.parts):
                continue  # a further set: its trials have been judged in their folds
            scores = held.scores(responses[part], self._pictures(trials.shown[rest]))
            heads[0, part] = self._by_category(scores, trials.shown[rest])
            self.distances[part] = held.distances(responses[part])
            for number, head in enumerate(linear, start=1):
                heads[number, part] = head(responses[part][:, held.voxels])
            own, places = np.unique(trials.shown[part], return_inverse=True)
            among = held.scores(responses[part], self._pictures(own))
            self.identified.append((among[:, places], trials.shown[part]))
        self._near, self._noise_range = 0.0, (1.0, 1.0)
        self.weights = weigh(heads, self.category)
        self.categories = weighed_apart(heads, self.category, trials.parts)
        self._linear_heads = self._linear(every, encoder.whole)

    def look_wider(self) -> None:
        """From now on look for pictures like those of calibration too, and allow for how strong a response's noise is.

        With null trials as the limit; differences of repeats still hold a little of pictures, which would raise it.
        """
        self._near = NEAR
        self._noise_range = (_LEAST_NOISE * float(np.median(self.distances)), _MOST_NOISE)

    def statistics(self, responses: Float32, fold: int | None) -> Float64:
        """Certainty of the best category, content, and content of each token group of other responses (m, v).

        Judged by the model without a fold, or by that of all trials. Of shape (2 + groups, m).
        """
        inverted, linear, shown = self._encoder.whole, self._linear_heads, self._trials.shown
        if fold is not None:
            rest = np.setdiff1d(np.arange(len(self._responses)), self._encoder.parts[fold])
            inverted, linear, shown = self._encoder.held[fold], self._held_heads[fold], shown[rest]
        pictures = self._pictures(shown)
        scores = inverted.scores(responses, pictures)
        by_head = [self._by_category(scores, shown), *(head(responses[:, inverted.voxels]) for head in linear)]
        certain = log_softmax(np.tensordot(self.weights, np.stack(by_head), 1), axis=1).max(1)
        contents = inverted.contents(
            responses, pictures, self._group, self._n_groups, near=self._near, noise_range=self._noise_range
        )
        return np.vstack([certain, contents])

    def of_noise(self, fold: int | None, rng: np.random.Generator) -> Float64:
        """`statistics` (2 + groups, `DRAWS`) of draws from the noise of the model that judges."""
        model = self._encoder.whole if fold is None else self._encoder.held[fold]
        return self.statistics(model.draw(DRAWS, self._responses.shape[1], rng), fold)

    def held_out(self) -> list[Float32]:
        """Return the responses of each fold."""
        return [self._responses[part] for part in self._trials.parts]

    def model(self, scaling: Scaling, signal: Signal) -> EncodingModel:
        """Return the decoder of all trials."""
        whole, linear = self._encoder.whole, self._linear_heads
        shown = np.unique(self._trials.shown)

        def single(values: NDArray[np.floating]) -> Float32:
            return np.ascontiguousarray(values, dtype=np.float32)

        used = scaling.voxels[whole.voxels]
        return EncodingModel(
            voxels=used.astype(np.int64),
            centre=single(scaling.mean[whole.voxels]),
            scale=single(scaling.scale[whole.voxels]),
            mean=single(whole.inverse.mean),
            projection=single(whole.inverse.projection),
            information=single(whole.inverse.information),
            basis=single(self._targets.basis),
            token_mean=single(self._targets.token_mean),
            pictures=single(self._pictures(shown)),
            picture_category=self._category_of[shown].astype(np.int64),
            own_noise=single(whole.noise.own),
            near=single(np.array([self._near])),
            noise_range=single(np.array(self._noise_range)),
            whitener=single(whole.noise.whitener()),
            signal_weights=single(signal.weights),
            category_weights=single(sum(w * head.weights for w, head in zip(self.weights[1:], linear, strict=True))),
            category_intercept=single(
                sum(w * head.intercept for w, head in zip(self.weights[1:], linear, strict=True))
            ),
            encoder_weight=single(self.weights[:1]),
        )

    def _pictures(self, shown: Ints) -> Float64:
        """Components of the distinct pictures among some."""
        return np.stack([self._shown_components[int(i)] for i in np.unique(shown)])

    def _by_category(self, scores: Float64, shown: Ints) -> Float64:
        return mean_likelihood(scores, self._category_of[np.unique(shown)], self._n)

    def _linear(self, rest: Ints, inverted: Inverted) -> tuple[LinearHead, ...]:
        """Fit the linear heads to some trials, in the voxels of a model of these."""
        own, category = self._responses[np.ix_(rest, inverted.voxels)], self.category[rest]
        tokens = linear_heads.no_head(self._n, own.shape[1])
        groups = self._trials.together[rest]
        if len(np.unique(self._trials.together)) >= _FEWEST_GROUPS:
            tokens = linear_heads.token_head(own, rows(self._targets, rest), groups, category, self._prototypes)
        return linear_heads.discriminant_head(own, category, self._n), tokens


def _evidence(judged: _Judged, nulls: Nulls, signal: Signal, p_category: float, rng: np.random.Generator) -> Evidence:
    of_noise = judged.of_noise(None, rng)

    def on_one_scale(responses: Float32, fold: int | None) -> Float64:
        """Return `_Judged.statistics` on the scale of the model of all trials."""
        found = judged.statistics(responses, fold)
        here = of_noise if fold is None else judged.of_noise(fold, rng)
        return np.stack([brought_over(*three) for three in zip(found, here, of_noise, strict=True)])

    found = [on_one_scale(rows, fold) for fold, rows in nulls.groups]
    own = [on_one_scale(rows, fold)[1] for fold, rows in enumerate(judged.held_out())]
    null = np.sort(np.concatenate([of_noise[:, :0], *found], axis=1)).astype(np.float32)
    right = judged.categories.argmax(1) == judged.category
    logs = log_softmax(judged.categories, axis=1)
    return Evidence(
        coefficients=fit_logistic(margin(judged.categories), right).astype(np.float32),
        signal=np.array([p_category <= ALPHA], dtype=np.uint8),
        content=np.sort(np.concatenate(own)).astype(np.float32),
        content_null=null[1],
        category_null=null[0],
        group_null=null[2:],
        rest=np.sort(signal.rest).astype(np.float32),
        distances=np.sort(judged.distances).astype(np.float32),
        surprise=-logs[np.arange(len(right)), judged.category].astype(np.float32),
        surprise_category=judged.category.astype(np.int64),
        level=np.array([SUPPORT_LEVEL]),
        independent_nulls=np.array([nulls.independent]),
    )
