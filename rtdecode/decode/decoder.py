"""A participant's decoder: one beta to an embedding, then a picture, then a caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from rtdecode.decode.pipeline import (
    Embedded,
    LeavesOut,
    Pipeline,
    Previews,
    TakesNetwork,
    TellsFallbacks,
    VolumeContext,
    VolumePredictor,
)
from rtdecode.decode.score.adapter import Adapter, adapter_from
from rtdecode.decode.score.candidates import Candidates
from rtdecode.decode.score.content import group_of
from rtdecode.decode.score.encoding import EncodingModel, encoding_from
from rtdecode.decode.score.evidence import Evidence, evidence_from, margin, tempered
from rtdecode.decode.score.search import Found, PictureSearch
from rtdecode.decode.score.voxel_encoder import PictureResponses, open_picture_responses
from rtdecode.decoded import CandidateScore, Caption, DecodedPart, Embedding, Prediction, Preview, Reconstruction, Score
from rtdecode.errors import BundleError, EngineError
from rtdecode.packs import EnginePack, ParticipantBundle, open_pack
from rtdecode.records import RegisteredVolume, frozen
from rtdecode.statistics import mid_ranks, p_value

_TOP = 5
_NOT_ASKED = Found(nearest={})


class Decoder:
    """Decodes betas of one participant; the same beta gives the same bytes.

    Parameters
    ----------
    pack : EnginePack
    candidates : Candidates
        What a trial may have shown.
    pipeline : Pipeline
        The pack's networks.
    search : PictureSearch or None
        Names the pictures of a pool that are most like what was decoded, for every beta.
    """

    def __init__(
        self, pack: EnginePack, candidates: Candidates, pipeline: Pipeline, search: PictureSearch | None = None
    ) -> None:
        self._pack, self._kind = pack.identity, pack.description.kind
        self._pipeline = pipeline
        self._search = search
        self.candidates = candidates
        self._participant: _Participant | None = None

    @property
    def absent(self) -> tuple[str, ...]:
        """Parts that `decode` never yields, as the pack has no stage for them."""
        return self._pipeline.absent

    @property
    def pool(self) -> str:
        """How the pool of other pictures is searched; empty without one."""
        return "" if self._search is None else self._search.how

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What of the pack runs otherwise than it was to, and why."""
        return self._pipeline.fallbacks if isinstance(self._pipeline, TellsFallbacks) else ()

    @property
    def window(self) -> int:
        """Number of volumes that `predict` looks at; 0 where the pack predicts nothing of volumes."""
        return self._pipeline.window if isinstance(self._pipeline, VolumePredictor) else 0

    def load(self, bundle: ParticipantBundle) -> None:
        """Take a participant; nothing is rebuilt.

        The retrieval pool is the candidates that calibration has not shown, or all of them if fewer than two are left.

        Raises
        ------
        BundleError
            The bundle lacks tensors, or was calibrated for another pack or other categories.
        """
        if bundle.provenance.pack != self._pack:
            raise BundleError(
                f"{bundle.folder}: calibrated for pack {bundle.provenance.pack}, this is {self._pack}; calibrate again"
            )
        known = tuple(bundle.provenance.categories)
        if known != self.candidates.categories:
            raise BundleError(
                f"{bundle.folder}: calibrated to tell {', '.join(known)} apart, the stimuli here are of "
                f"{', '.join(self.candidates.categories)}; calibrate again"
            )
        adapter = adapter_from(bundle.adapter)
        shown = set(bundle.provenance.stimuli)
        pool = self.candidates.without(shown)
        participant = _Participant(
            adapter=adapter,
            mask_voxels=bundle.provenance.mask_voxels,
            encoding=encoding_from(bundle.encoding),
            evidence=evidence_from(bundle.evidence),
            null=bundle.provenance.null,
            pool=pool,
            pool_was_shown=not shown.isdisjoint(pool.names),
            responses=None if bundle.encoder is None else _responses(bundle, bundle.encoder),
        )
        if isinstance(self._pipeline, TakesNetwork):
            self._pipeline.take_network(None if bundle.network is None else open_pack(str(bundle.network)), adapter)
        elif bundle.network is not None:
            raise BundleError(f"{bundle.folder}: carries a network, which packs of kind {self._kind} do not take")
        self._pipeline.take(adapter)
        self._participant = participant

    def embed(self, beta: NDArray[np.float32], truth: Sequence[str | None] = ()) -> Embedding:
        """Tokens of a beta and how they score.

        Parameters
        ----------
        beta : ndarray of shape (v,), float32
            Percent signal change per voxel of the mask; a voxel without an estimate is not finite.
        truth : sequence of str or None
            Names of what was shown, where known (stimulus, condition); the first that is in the pool is ranked.

        Raises
        ------
        EngineError
            No participant is loaded, the beta is not of the calibrated mask, or too little of it is known.
        """
        return self._embed(beta, truth)[1]

    def likelihood(self, beta: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float64]:
        """Log-likelihood of candidates, given a beta, up to a constant of the beta.

        Parameters
        ----------
        beta : ndarray of shape (v,), float32
        names : sequence of n str
            Candidates to compare, among them those that calibration has shown.

        Returns
        -------
        ndarray of shape (n,), float64

        Raises
        ------
        EngineError
            As `embed`, or a name is no candidate.
        """
        rows = [self.candidates.index(name) for name in names]
        if None in rows:
            raise EngineError(f"{names[rows.index(None)]!r}: expected the name of a candidate")
        return self._person("a beta", beta).likelihood(beta, self.candidates.tokens[np.array(rows)])

    def decode(
        self,
        beta: NDArray[np.float32],
        truth: Sequence[str | None],
        trial: str,
        candidates: Sequence[str] = (),
        *,
        average: NDArray[np.float32] | None = None,
        shown: int = 1,
    ) -> Iterator[DecodedPart]:
        """Yield the embedding, preview, picture and caption of a beta as they become ready, as far as there are.

        Where candidates were announced, which of them fits best comes after the embedding. Token groups that a
        supported trial does not support are left out of picture and caption, where the pipeline `LeavesOut`: they are
        as in the average picture. The mean of several trials is drawn whole, as no evidence is stated of it.

        Parameters
        ----------
        beta, truth
            As of `embed`.
        trial : str
            Fixes the noise: revisions of its beta change the picture no more than the beta does.
        candidates : sequence of str
            Pictures to choose from.
        average : ndarray of shape (v,), float32, or None
            Mean of the betas of the stimulus so far, this one included: all but the scores is made of it.
        shown : int
            How many it is the mean of.

        Raises
        ------
        EngineError
            As `embed`.
        """
        embedded, embedding = self._embed(beta, truth, average, shown)
        yield embedding
        if candidates:
            yield self._person("a beta", beta).choose(beta, candidates)
        score = embedding.score
        if average is None and isinstance(self._pipeline, LeavesOut):
            embedded = self._pipeline.without(embedded, self._person("a beta", beta).not_supported(score))
        settled = self._pipeline.settle(embedded, score.average_predicted or score.predicted, trial)
        if isinstance(self._pipeline, Previews) and (early := self._pipeline.preview(settled)) is not None:
            yield Preview(image=frozen(early), shown=shown)
        picture = self._pipeline.picture(settled, trial)
        if picture is not None:
            yield Reconstruction(image=frozen(picture), shown=shown)
        caption = self._pipeline.caption(settled)
        if caption is not None:
            yield Caption(text=caption, shown=shown)

    def predict(self, volumes: Sequence[RegisteredVolume]) -> Prediction:
        """Predict of the last of some volumes of a run, `window` of them or fewer.

        Raises
        ------
        EngineError
            No participant is loaded, the volumes are not of the calibrated mask, or the pack predicts nothing.
        """
        pipeline = self._pipeline
        if not isinstance(pipeline, VolumePredictor):
            raise EngineError("expected a pack that predicts of volumes, got one that does not: do not ask it")
        *earlier, volume = volumes
        self._person("a volume", volume.masked)
        return pipeline.predict(volume, VolumeContext(earlier=earlier))

    def _person(self, what: str, values: NDArray[np.float32]) -> _Participant:
        """Return who is loaded, if the values are of their mask."""
        person = self._participant
        if person is None:
            raise EngineError("no participant is loaded: calibrate, or set decode.bundle")
        if len(values) != person.mask_voxels:
            raise EngineError(
                f"expected {what} of the {person.mask_voxels} voxels of the calibrated mask, got {len(values)}"
            )
        return person

    def _embed(
        self,
        beta: NDArray[np.float32],
        truth: Sequence[str | None],
        average: NDArray[np.float32] | None = None,
        shown: int = 1,
    ) -> tuple[Embedded, Embedding]:
        person = self._person("a beta", beta)
        score = person.score(beta, truth)
        if average is not None:
            score = self._person("a mean", average).with_average(score, average, shown, truth)
        embedded = self._pipeline.embed(person.adapter.chosen(beta if average is None else average))
        found = _NOT_ASKED if self._search is None else self._search.of(embedded.tokens)
        return embedded, Embedding(
            tokens=frozen(embedded.tokens),
            components=frozen(embedded.components),
            score=score,
            shown=shown,
            nearest=found.nearest,
            unsearched=found.unsearched,
        )


class _Participant:
    """What a bundle says, ready for use."""

    def __init__(
        self,
        *,
        adapter: Adapter,
        mask_voxels: int,
        encoding: EncodingModel,
        evidence: Evidence,
        null: str,
        pool: Candidates,
        pool_was_shown: bool,
        responses: PictureResponses | None,
    ) -> None:
        self.adapter = adapter
        self.mask_voxels = mask_voxels
        self._encoding = encoding
        self._evidence = evidence
        self._null = null
        self._pool = pool
        named = pool.groups if pool.group_names else ()
        self._parts = dict(zip(pool.group_names, encoding.parts(named), strict=True))
        self._group = group_of(adapter.basis, named)
        self._components = encoding.describe(pool.tokens)
        self._pool_was_shown = pool_was_shown
        self._responses = responses

    def likelihood(self, beta: NDArray[np.float32], tokens: NDArray[np.float32]) -> NDArray[np.float64]:
        """Log-likelihood (n,) of pictures with tokens (n, t, d)."""
        return self._encoding.pictures_of(self._encoding.read(beta), self._encoding.describe(tokens))

    def score(self, beta: NDArray[np.float32], truth: Sequence[str | None]) -> Score:
        """Judge what a beta (v,) says of categories and candidates, and whether it says anything."""
        categories = self._pool.categories
        reading = self._encoding.read(beta)
        by_category = self._encoding.categories_of(reading)
        by_candidate = self._encoding.pictures_of(reading, self._components)
        lead = float(margin(by_category))
        chance = 1 / len(categories)
        evidence = self._evidence.probability(lead, chance)
        shares = np.exp(log_softmax(by_category))
        p_content = self._evidence.p_content(self._encoding.content_of(reading))
        p_category = self._evidence.p_category(float(np.log(shares.max())))
        contents = [self._encoding.content_of(reading, part) for part in self._parts.values()]
        p_groups = dict(zip(self._parts, self._evidence.p_groups(contents), strict=True))
        p_motion = self._evidence.p_motion(reading.distance)
        p_signal = self._evidence.p_signal(reading.signal)
        refused = self._evidence.refusal(p_content, p_motion, p_signal)
        plausible = self._evidence.plausible(shares) & (not self._evidence.is_outlier(p_motion))
        known = self._known(truth)
        best = np.argsort(-by_candidate, kind="stable")[:_TOP]
        return Score(
            predicted=categories[int(np.argmax(by_category))],
            probabilities=dict(zip(categories, tempered(by_category, evidence).tolist(), strict=True)),
            top=tuple(self._pool.names[int(i)] for i in best),
            rank=None if known is None else float(mid_ranks(by_candidate)[known]),
            pool=len(self._pool.names),
            posterior=dict(zip(self._pool.names, np.exp(log_softmax(by_candidate)).tolist(), strict=True)),
            evidence=evidence,
            chance=chance,
            supported=not refused,
            refused=refused,
            p_content=p_content,
            p_category=p_category,
            p_groups=p_groups,
            unknown=() if refused else self._evidence.unknown(p_category, evidence, p_groups),
            p_motion=p_motion,
            p_signal=p_signal,
            p_agreement=self._agreement(by_candidate, known),
            plausible=tuple(name for name, kept in zip(categories, plausible, strict=True) if kept),
            null=self._null,
        )

    def not_supported(self, score: Score) -> NDArray[np.bool_]:
        """Components (k,) of the adapter whose token group a supported trial does not support."""
        return np.isin(self._group, np.flatnonzero(np.isin(self._pool.group_names, score.unknown)))

    def with_average(
        self, score: Score, average: NDArray[np.float32], shown: int, truth: Sequence[str | None]
    ) -> Score:
        """Add what the mean (v,) of so many trials names; what was learned of single trials says nothing of it."""
        reading = self._encoding.read(average)
        by_category = self._encoding.categories_of(reading, shown)
        row = self._known(truth)
        ranks = mid_ranks(self._encoding.pictures_of(reading, self._components))
        return replace(
            score,
            shown=shown,
            average_predicted=self._pool.categories[int(np.argmax(by_category))],
            average_rank=None if row is None else float(ranks[row]),
        )

    def _known(self, truth: Sequence[str | None]) -> int | None:
        """Row of the first name of what was shown that is in the pool."""
        return next((row for row in map(self._pool.index, truth) if row is not None), None)

    def choose(self, beta: NDArray[np.float32], candidates: Sequence[str]) -> CandidateScore:
        """Say which of some pictures fits a beta (v,) best, or why that cannot be told."""
        responses = self._responses
        known = [name for name in dict.fromkeys(candidates) if responses is not None and name in responses.names]
        unknown = tuple(name for name in dict.fromkeys(candidates) if name not in known)
        if responses is None or len(known) < 2:
            why = "the bundle carries no encoder: rtdecode fit-encoder --into it"
            return CandidateScore(
                agreement={},
                chosen="",
                margin=0.0,
                p_decoy=1.0,
                judged={},
                unknown=unknown,
                refused=why if responses is None else f"the encoder knows {len(known)} of the candidates, 2 are needed",
            )
        found = responses.choose(beta, known)
        return CandidateScore(
            agreement={
                region: dict(zip(known, values.tolist(), strict=True)) for region, values in found.agreement.items()
            },
            chosen=known[found.chosen],
            margin=found.margin,
            p_decoy=found.p_decoy,
            judged=dict(found.judged),
            unknown=unknown,
            refused="",
        )

    def _agreement(self, by_candidate: NDArray[np.float64], known: int | None) -> float | None:
        """Exact p-value of the announced candidate: its place among the others, if calibration showed none of these."""
        if known is None or self._pool_was_shown:
            return None
        return p_value(np.delete(by_candidate, known), float(by_candidate[known]))


def _responses(bundle: ParticipantBundle, folder: Path) -> PictureResponses:
    found = open_picture_responses(folder)
    if found.encoder.voxels.max() >= bundle.provenance.mask_voxels:
        raise BundleError(
            f"{folder}: expected an encoder of the {bundle.provenance.mask_voxels} voxels of the bundle's mask, got "
            f"one of voxels up to {int(found.encoder.voxels.max())}: fit it to a session in the bundle's space"
        )
    return found
