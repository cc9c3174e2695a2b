"""A participant's decoder: one beta to an embedding, then a caption, then a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtdecode.bundle import EnginePack, ParticipantBundle
from rtdecode.decode.adapter import Adapter, adapter_from
from rtdecode.decode.candidates import Candidates, load_candidates
from rtdecode.decode.captions import sentence
from rtdecode.decode.evidence import Evidence, evidence_from, margin, tempered
from rtdecode.decode.picture import Painter
from rtdecode.decode.retrieval import Scorer, mid_rank, scorer_from
from rtdecode.decode.stages import Stages, load_stages
from rtdecode.errors import BundleError, EngineError
from rtdecode.records import Caption, Embedding, Reconstruction, Score, frozen

_TOP = 5
_COMMIT = np.float32(1e4)
"""Added to the logit of the category that the score chose, so that the picture shows that category."""


class Decoder:
    """Decodes betas of one participant; the same beta gives the same bytes.

    Parameters
    ----------
    pack : EnginePack
    stimuli : Path or None
        Folder of candidate pictures, or None for the pack's categories.
    threads : int
        Threads of the engines.
    seed : int
        Of the session: fixes, with the trial, the noise that a picture starts from.
    prior_steps, unclip_steps : int or None
        Evaluations a picture; None takes what the pack says.

    Raises
    ------
    EngineError, BundleError
        The pack or the candidates cannot be used.
    """

    def __init__(
        self,
        pack: EnginePack,
        *,
        stimuli: Path | None = None,
        threads: int = 1,
        seed: int = 0,
        prior_steps: int | None = None,
        unclip_steps: int | None = None,
    ) -> None:
        self._identity = pack.identity
        self._stages = load_stages(pack, threads=threads)
        self._painter = Painter(self._stages, seed=seed, prior_steps=prior_steps, unclip_steps=unclip_steps)
        self._candidates = load_candidates(self._stages, stimuli)
        self._participant: _Participant | None = None
        self._warm_up()

    @property
    def stages(self) -> Stages:
        """The engines."""
        return self._stages

    @property
    def candidates(self) -> Candidates:
        """What a trial may have shown."""
        return self._candidates

    def load(self, bundle: ParticipantBundle) -> None:
        """Take a participant; nothing is rebuilt.

        The retrieval pool is the candidates that calibration has not shown, or all of them if fewer than two are left.

        Raises
        ------
        BundleError
            The bundle lacks tensors or was calibrated for another pack.
        """
        if bundle.provenance.get("pack") != self._identity:
            raise BundleError(
                f"{bundle.folder}: calibrated for pack {bundle.provenance.get('pack')}, this is {self._identity}; "
                "calibrate again"
            )
        adapter = adapter_from(bundle.adapter)
        shown = set(bundle.provenance.get("stimuli", ()))
        fresh = [i for i, name in enumerate(self._candidates.names) if name not in shown]
        rows = fresh if len(fresh) >= 2 else list(range(len(self._candidates.names)))
        self._participant = _Participant(
            adapter=adapter,
            scorer=scorer_from(bundle.evidence),
            evidence=evidence_from(bundle.evidence),
            pool=Candidates(names=tuple(self._candidates.names[i] for i in rows), tokens=self._candidates.tokens[rows]),
        )

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
            No participant is loaded, or the beta is not of the calibrated mask.
        """
        person = self._loaded()
        components, tokens = person.adapter.apply(self._stages, beta)
        return Embedding(
            tokens=frozen(tokens),
            components=frozen(components),
            score=person.score(components, self._stages.categories, truth),
        )

    def caption(self, embedding: Embedding) -> Caption:
        """Sentence of an embedding."""
        out = self._stages.captioner.run({"tokens": self._committed(embedding)})
        return Caption(text=sentence(out["words"][0], self._stages.vocabulary, self._stages.end))

    def reconstruct(self, embedding: Embedding, trial: str) -> Reconstruction:
        """Picture of an embedding; the same embedding and trial give the same bytes."""
        return Reconstruction(image=frozen(self._painter.paint(self._committed(embedding)[0], trial)))

    def _committed(self, embedding: Embedding) -> NDArray[np.float32]:
        person = self._loaded()
        bias = np.zeros((1, len(self._stages.categories)), dtype=np.float32)
        bias[0, self._stages.categories.index(embedding.score.predicted)] = _COMMIT
        r2 = np.clip(person.adapter.group_r2, 0, 1).astype(np.float32)[None]
        return self._stages.commit.run({"tokens": embedding.tokens[None], "r2": r2, "category_bias": bias})[
            "tokens_clean"
        ]

    def _loaded(self) -> _Participant:
        if self._participant is None:
            raise EngineError("no participant is loaded: calibrate, or set decode.bundle")
        return self._participant

    def _warm_up(self) -> None:
        stages = self._stages
        tokens = stages.prototypes[:1]
        stages.commit.run(
            {
                "tokens": tokens,
                "r2": np.full((1, len(stages.groups)), 0.5, dtype=np.float32),
                "category_bias": np.zeros((1, len(stages.categories)), dtype=np.float32),
            }
        )
        stages.captioner.run({"tokens": tokens})
        self._painter.paint(tokens[0], "")


class _Participant:
    """What a bundle says, ready for use."""

    def __init__(self, *, adapter: Adapter, scorer: Scorer, evidence: Evidence, pool: Candidates) -> None:
        self.adapter = adapter
        self._scorer = scorer
        self._evidence = evidence
        self._pool = pool
        self._components = adapter.project(pool.tokens)

    def score(self, components: NDArray[np.float32], categories: tuple[str, ...], truth: Sequence[str | None]) -> Score:
        """Judge category and candidates of predicted components (k,)."""
        by_category = self._scorer.categories(components[None])[0]
        by_candidate = self._scorer.candidates(components[None], self._components)[0]
        lead = float(margin(by_category))
        chance = 1 / len(categories)
        evidence = self._evidence.probability(lead, chance)
        probabilities = tempered(by_category, evidence)
        known = [row for row in map(self._pool.index, truth) if row is not None]
        best = np.argsort(-by_candidate, kind="stable")[:_TOP]
        return Score(
            predicted=categories[int(np.argmax(by_category))],
            probabilities={name: float(p) for name, p in zip(categories, probabilities, strict=True)},
            top=tuple(self._pool.names[int(i)] for i in best),
            rank=mid_rank(by_candidate, known[0]) if known else None,
            pool=len(self._pool.names),
            evidence=evidence,
            chance=chance,
            p_noise=self._evidence.p_noise(lead),
        )
