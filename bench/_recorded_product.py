"""The product on recorded runs: calibrated on some, it decodes others; beside it classifiers on the same betas.

Betas are those of 7.5 s after a block. Calibration goes as in a session: its betas are estimated again at its end.
Stretches of rest are announced as trials besides, in a repetition of each split: none of them should be supported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from _recorded import Betas, Run, Session
from _report import print_table
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from calibration.calibrator import Calibrator
from rtdecode.decode.loading import load_candidates
from rtdecode.decode.score.encoding import Reading
from rtdecode.decode.score.evidence import margin
from rtdecode.estimate.reestimate import CalibrationBetas
from rtdecode.packs import open_pack
from rtdecode.statistics import bootstrap_interval, wilson_interval

PRODUCT = "product"
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "shrinkage LDA": lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "RidgeClassifierCV": lambda: RidgeClassifierCV(np.logspace(-1, 5, 13)),
}
AGAIN = ", betas estimated again"
RENAMED = {"scrambledpix": "scrambled"}
FINAL_S = 7.5
"""After the end of a block."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """What a calibration on some runs makes of the trials of others.

    Attributes
    ----------
    right : dict of str to ndarray of shape (n,), bool
        Trials whose category each method names.
    evidence : ndarray of shape (n,)
        The product's probability of its answer.
    supported : ndarray of shape (n,), bool
    rest_supported : ndarray of shape (m,), bool
        Of stretches of rest that were announced as trials.
    null : str
        What support rests on.
    """

    right: dict[str, NDArray[np.bool_]]
    evidence: NDArray[np.float64]
    supported: NDArray[np.bool_]
    rest_supported: NDArray[np.bool_]
    null: str


def decode_split(
    first: Sequence[Betas],
    learned: CalibrationBetas,
    labels: Sequence[NDArray[np.str_]],
    test: Betas,
    test_labels: NDArray[np.str_],
    rest: Betas,
) -> Split:
    """Calibrate on runs and decode trials.

    Parameters
    ----------
    first : sequence of ndarray of shape (n, v)
        Betas of each calibration run as they came.
    learned : CalibrationBetas
        The same, estimated again at the end of calibration.
    labels : sequence of ndarray of shape (n,)
    test : ndarray of shape (m, v)
    test_labels : ndarray of shape (m,)
    rest : ndarray of shape (r, v)
    """
    candidates = load_candidates(open_pack("tiny"), None, threads=1)
    calibrator = Calibrator(candidates, leave_out="run")
    for run, (came, names) in enumerate(zip(first, labels, strict=True), start=1):
        for order, name in enumerate(names):
            trial = f"{run}/{order}"
            calibrator.add(came[order], trial=trial, stimulus=RENAMED.get(str(name), str(name)), run=run)
    calibrator.take_again(learned)
    fit = calibrator.fit()
    truth = [candidates.categories.index(RENAMED.get(str(name), str(name))) for name in test_labels]
    readings = [fit.encoding.read(beta) for beta in test.astype(np.float32)]
    scores = np.stack([fit.encoding.categories_of(reading) for reading in readings])

    def supported(reading: Reading) -> bool:
        p_content = fit.evidence.p_content(fit.encoding.content_of(reading))
        return not fit.evidence.refusal(
            p_content, fit.evidence.p_motion(reading.distance), fit.evidence.p_signal(reading.signal)
        )

    right = {PRODUCT: scores.argmax(1) == truth}
    for name, make in CLASSIFIERS.items():
        again = [
            np.stack([learned.trials[f"{run}/{order}"] for order in range(len(betas))])
            for run, betas in enumerate(first, start=1)
        ]
        for kind, betas in (("", first), (AGAIN, again)):
            classifier = make_pipeline(StandardScaler(), make())
            classifier.fit(np.vstack(list(betas)), np.concatenate(list(labels)))
            right[name + kind] = np.asarray(classifier.predict(test) == test_labels)
    chance = 1 / len(candidates.categories)
    return Split(
        right=right,
        evidence=np.array([fit.evidence.probability(float(margin(row)), chance) for row in scores]),
        supported=np.array([supported(reading) for reading in readings]),
        rest_supported=np.array([supported(fit.encoding.read(beta)) for beta in rest.astype(np.float32)], bool),
        null=fit.figures.null,
    )


def splits_of(n: int) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Return calibration runs and decoded runs of each split of `n` runs, as places; leave one run out has `n`."""
    every = list(range(n))
    half, third = n // 2, n // 3
    named = [
        (every[:half], every[half:]),
        (every[half:], every[:half]),
        (every[: 2 * third], every[2 * third :]),
        (every[n - 2 * third :], every[: n - 2 * third]),
        (every[:4], every[4:]),
    ]
    splits = {
        f"{known[0] + 1}-{known[-1] + 1} to {new[0] + 1}-{new[-1] + 1}": [(known, new)] for known, new in named if new
    }
    splits["leave one run out"] = [([i for i in every if i != run], [run]) for run in every]
    return splits


def decode_splits(runs: Sequence[Run], *, quick: bool) -> dict[str, Any]:
    """Decode every split; `quick`: the first only."""
    found: dict[str, list[Split]] = {}
    for name, parts in list(splits_of(len(runs)).items())[: 1 if quick else None]:
        found[name] = [_play(runs, known, new) for known, new in parts]
    figures = {name: _figures(splits) for name, splits in found.items()}
    figures["pooled"] = _figures([split for splits in found.values() for split in splits])
    return figures


def _play(runs: Sequence[Run], known: Sequence[int], new: Sequence[int]) -> Split:
    session, with_rest = (Session(FINAL_S, calibration_runs=len(known)) for _ in range(2))
    first = [session.play(runs[i])[FINAL_S] for i in known]
    learned = session.estimator.reestimated()
    assert learned is not None
    test = np.vstack([session.play(runs[i])[FINAL_S] for i in new])
    for i in known:
        with_rest.play(runs[i])
    rest = []
    for i in new:
        late = with_rest.play(runs[i], rest=True)
        every = np.where(np.abs(late[FINAL_S]).sum(1, keepdims=True) > 0, late[FINAL_S], late[max(late)])
        rest.append(every[len(runs[i].labels) :])
    labels = [runs[i].labels for i in known]
    return decode_split(first, learned, labels, test, np.concatenate([runs[i].labels for i in new]), np.vstack(rest))


def _share(found: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = wilson_interval(int(found.sum()), len(found))
    return {"accuracy": float(found.mean()) if len(found) else None, "interval": [low, high], "n": len(found)}


def _figures(splits: Sequence[Split]) -> dict[str, Any]:
    right = {name: np.concatenate([split.right[name] for split in splits]) for name in splits[0].right}
    rng = np.random.default_rng(0)

    def ahead(other: str) -> dict[str, Any]:
        difference = right[PRODUCT].astype(float) - right[other]
        low, high = bootstrap_interval(difference, rng, resamples=9999)
        return {"difference": float(difference.mean()), "interval": [low, high]}

    supported = np.concatenate([split.supported for split in splits])
    return {
        "accuracy": {name: _share(found) for name, found in right.items()},
        "product_minus": {name: ahead(name) for name in right if name != PRODUCT},
        "evidence": float(np.concatenate([split.evidence for split in splits]).mean()),
        "supported": _share(supported),
        "right_supported": _share(supported[right[PRODUCT]]),
        "rest_supported": _share(np.concatenate([split.rest_supported for split in splits])),
        "null": sorted({split.null for split in splits}),
    }


def report_splits(figures: Mapping[str, Any]) -> None:
    """Print the tables."""
    methods = list(next(iter(figures.values()))["accuracy"])

    def share(found: Mapping[str, Any]) -> str:
        low, high = found["interval"]
        return "" if found["accuracy"] is None else f"{found['accuracy']:.0%} [{low:.0%}-{high:.0%}]"

    print_table(
        f"The product on splits of the runs, {FINAL_S:g} s after a block, 95 % Wilson intervals, chance 12.5 %; blocks "
        "of different splits overlap",
        ["split", "blocks", *methods],
        [
            [name, found["accuracy"][PRODUCT]["n"], *(share(found["accuracy"][method]) for method in methods)]
            for name, found in figures.items()
        ],
    )
    print_table(
        "Product minus each classifier, paired by block, points with 95 % bootstrap",
        ["split", *(method for method in methods if method != PRODUCT)],
        [
            [
                name,
                *(
                    f"{100 * one['difference']:+.0f} [{100 * one['interval'][0]:+.0f}, {100 * one['interval'][1]:+.0f}]"
                    for one in found["product_minus"].values()
                ),
            ]
            for name, found in figures.items()
        ],
    )
    print_table(
        "Evidence",
        ["split", "mean evidence", "accuracy", "supported", "of the right ones", "of rest", "null"],
        [
            [
                name,
                f"{found['evidence']:.0%}",
                f"{found['accuracy'][PRODUCT]['accuracy']:.0%}",
                share(found["supported"]),
                share(found["right_supported"]),
                share(found["rest_supported"]),
                ", ".join(found["null"]),
            ]
            for name, found in figures.items()
        ],
    )
