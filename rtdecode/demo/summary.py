"""What a demo says at its end, and writes as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rtdecode import client as wire
from rtdecode.decode.decoder import Decoder
from rtdecode.decode.loading import load_decoder
from rtdecode.decode.score.evidence import CATEGORY
from rtdecode.demo.collector import Collected, SeenTrial
from rtdecode.demo.demo_visits import Visit
from rtdecode.demo.imagery_summary import imagined, print_imagery
from rtdecode.imagery.read_out import scale_of
from rtdecode.packs import open_pack, open_participant
from rtdecode.session.recording import session_folder
from rtdecode.settings import Settings
from rtdecode.statistics import mid_ranks, percentile_ranks, permutation_p, wilson_interval

_SHUFFLES = 9_999


def summarise(visit: Visit, settings: Settings, seen: Collected, *, expected: int) -> dict[str, Any]:
    """Return the summary of a demo.

    Parameters
    ----------
    visit : Visit
    settings : Settings
    seen : Collected
        All that the stream said.
    expected : int
        Volumes that were announced.

    Returns
    -------
    dict
        Ready for JSON. `accuracy_final` is the share of decoded trials whose category was named right from the
        final beta; a trial without a result counts as wrong. `supported` is of those whose category is supported.
    """
    folder = session_folder(settings.session)
    rng = np.random.default_rng(settings.session.seed)
    trials = sorted(seen.trials.values(), key=lambda t: (t.run, t.score.onset_s if t.score else 0.0))
    epochs = trials
    if visit.imagery is not None:  # an epoch in which nothing is imagined has no right answer
        trials = [t for t in trials if t.score is None or t.score.stimulus != visit.imagery.catch]
    true = [str(t.score.condition) if t.score else "" for t in trials]
    predicted = [t.score.predicted if t.score else "" for t in trials]
    hits = sum(a == b for a, b in zip(true, predicted, strict=True))
    pack = open_pack(settings.decode.pack)
    decoder = load_decoder(pack, settings.decode)
    summary: dict[str, Any] = {
        "participant": settings.session.participant,
        "seed": settings.session.seed,
        "calibration_trials": seen.calibration_trials,
        "decoded_trials": len(trials),
        "categories": list(decoder.candidates.categories),
        "chance": 1 / len(decoder.candidates.categories),
        "accuracy_final": hits / len(trials),
        "accuracy_interval": list(wilson_interval(hits, len(trials))),
        "permutation_p": _accuracy_p(true, predicted, rng),
        "supported": _supported(trials),
        "calibration": _calibration(seen.calibration),
        "trials": [_trial(t) for t in trials],
        "latency_ms": {
            **_quantiles("volume", seen.volume_ms),
            **_quantiles("reconstruction", seen.reconstruction_ms),
        },
        "volumes": {"expected": expected, "received": seen.received, "skipped": seen.skipped},
        "faults": [f"{f.part}: {f.reason}" for f in seen.faults if not f.over],
        "session_dir": str(folder),
    }
    if visit.imagery is not None:
        decoder.load(open_participant(folder / "bundle"))
        summary["imagery"] = imagined(
            visit.imagery, epochs, seen.betas, decoder, scale_of(open_participant(folder / "bundle"))
        )
    elif not visit.repeats:
        summary["identification"] = _identification(visit, trials, seen.betas, decoder, folder, rng)
    return summary


def _identification(
    visit: Visit,
    trials: list[SeenTrial],
    betas: Mapping[str, NDArray[np.float32]],
    decoder: Decoder,
    folder: Path,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Name the shown picture among all that were shown while decoding; beside it the oracle's figures."""
    decoder.load(open_participant(folder / "bundle"))
    usable = [t for t in trials if t.trial in betas and t.score is not None and t.score.stimulus is not None]
    shown = sorted({str(t.score.stimulus) for t in usable if t.score})
    truth = np.array([shown.index(str(t.score.stimulus)) for t in usable if t.score], np.intp)

    def score(found: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
        likelihood = np.stack([decoder.likelihood(found[t.trial], shown) for t in usable])
        return score_identification(likelihood, truth, rng)

    decoded = score(betas)
    mask = nib.load(next(folder.rglob("*_desc-brain_mask.nii.gz")))
    noiseless = visit.true_betas(mask.affine, np.asarray(mask.dataobj) > 0)
    if noiseless is not None:
        oracle = score(noiseless)
        named = [decoder.embed(noiseless[t.trial]).score.predicted for t in usable]
        right = sum(name == t.score.condition for name, t in zip(named, usable, strict=True) if t.score)
        oracle["accuracy"] = right / len(usable)
        decoded["oracle"] = oracle
        decoded["fraction_of_oracle"] = _fraction(decoded["percentile"] - 0.5, oracle["percentile"] - 0.5)
        decoded["fraction_of_oracle_top1"] = _fraction(decoded["top1"], oracle["top1"])
    return decoded


def score_identification(
    similarity: NDArray[np.float64], truth: NDArray[np.intp], rng: np.random.Generator
) -> dict[str, Any]:
    """Score how well the shown picture is named among candidates.

    Parameters
    ----------
    similarity : ndarray of shape (n_trials, n_candidates)
    truth : ndarray of shape (n_trials,)
        Column of the picture that was shown.
    rng : Generator

    Returns
    -------
    dict
        ``trials`` and ``pool``; ``top1``, the share of trials with the shown picture ranked first, with its interval;
        ``percentile``, the mean percentile rank, and how often shuffled pictures reach it; what chance gives.
    """
    n, pool = similarity.shape
    percentiles = percentile_ranks(similarity)
    first = mid_ranks(similarity)[np.arange(n), truth] == 1.0
    return {
        "trials": n,
        "pool": pool,
        "top1": float(first.mean()),
        "top1_interval": list(wilson_interval(int(first.sum()), n)),
        "chance_top1": 1 / pool,
        "percentile": float(percentiles[np.arange(n), truth].mean()),
        "chance_percentile": 0.5,
        "permutation_p": permutation_p(percentiles, truth, rng, resamples=_SHUFFLES),
    }


def _accuracy_p(true: Sequence[str], predicted: Sequence[str], rng: np.random.Generator) -> float:
    """Return how often shuffled truth gives at least this accuracy."""
    names = sorted({*true, *predicted})
    named = np.array([[name == answer for name in names] for answer in predicted])
    return permutation_p(named, np.array([names.index(name) for name in true]), rng, resamples=_SHUFFLES)


def _supported(trials: Sequence[SeenTrial]) -> dict[str, Any]:
    """Tell how many trials support a category, and in how many of these it was the right one."""
    scores = [t.score for t in trials if t.score is not None and t.score.supported and CATEGORY not in t.score.unknown]
    right = sum(score.predicted == score.condition for score in scores)
    interval = list(wilson_interval(right, len(scores))) if scores else None
    return {"trials": len(scores), "right": right, "interval": interval}


def _fraction(part: float, whole: float) -> float | None:
    """Return `part` of `whole`, or None where the whole is nothing."""
    return part / whole if whole > 0 else None


def _calibration(status: wire.Calibration | None) -> dict[str, Any] | None:
    if status is None:
        return None
    return {
        "trials": status.trials,
        "held_out_percentile": status.percentile,
        "interval": list(status.interval),
        "permutation_p": status.p_value,
        "note": status.note,
    }


def _trial(trial: SeenTrial) -> dict[str, Any]:
    score = trial.score or wire.Score()
    return {
        "run": trial.run,
        "trial": trial.trial,
        "onset_s": score.onset_s,
        "true": score.condition,
        "stimulus": score.stimulus,
        "predicted": score.predicted,
        "rank": score.rank,
        "pool": score.pool,
        "evidence": score.evidence,
        "supported": score.supported,
        "p_content": score.p_content,
        "unknown": list(score.unknown),
        "caption": trial.caption,
        "revisions": trial.revisions,
        "invalid": score.invalid,
        "latency_ms": {name: round(value, 2) for name, value in trial.stages.items()},
    }


def _quantiles(name: str, values: list[float]) -> dict[str, float | None]:
    if not values:
        return {f"{name}_p50": None, f"{name}_p99": None}
    return {f"{name}_p{q}": round(float(np.percentile(values, q)), 2) for q in (50, 99)}


def _share_of_oracle(fraction: float | None) -> str:
    if fraction is None:
        return "which is chance"
    return f"the demo reaches {fraction:.0%} of it (percentile above chance)"


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print the summary as a table."""
    table = Table(title="rtdecode demo", show_header=False, title_style="bold")
    low, high = summary["accuracy_interval"]
    table.add_row("participant", f"{summary['participant']}, seed {summary['seed']}")
    table.add_row("calibration trials", str(summary["calibration_trials"]))
    table.add_row(
        "category named right",
        f"{summary['accuracy_final']:.1%} of {summary['decoded_trials']} trials [{low:.0%} to {high:.0%}], "
        f"chance {summary['chance']:.1%}, permutation p = {summary['permutation_p']:.4f}",
    )
    supported = summary["supported"]
    if supported["trials"]:
        low, high = supported["interval"]
        share = f"{supported['right']} of {supported['trials']} trials right [{low:.0%} to {high:.0%}]"
    else:
        share = "no trial"
    table.add_row("where the response supports it", share)
    found = summary.get("identification")
    if found is not None:
        table.add_row(
            "shown picture identified",
            f"first of {found['pool']}: {found['top1']:.1%} (chance {found['chance_top1']:.1%}); mean percentile rank "
            f"{found['percentile']:.1%} (chance 50 %), permutation p = {found['permutation_p']:.4f}",
        )
        if "oracle" in found:
            oracle = found["oracle"]
            table.add_row(
                "same decoder, noiseless betas",
                f"first: {oracle['top1']:.1%}; percentile {oracle['percentile']:.1%}; "
                f"category {oracle['accuracy']:.1%}; " + _share_of_oracle(found["fraction_of_oracle"]),
            )
    if "imagery" in summary:
        print_imagery(summary["imagery"], table)
    volumes, latency = summary["volumes"], summary["latency_ms"]
    table.add_row("volumes", f"{volumes['received']} of {volumes['expected']} received, {volumes['skipped']} skipped")
    for name in ("volume", "reconstruction"):
        table.add_row(
            f"{name} latency",
            f"median {latency[f'{name}_p50']} ms, p99 {latency[f'{name}_p99']} ms after its file",
        )
    for fault in summary["faults"]:
        table.add_row("[red]fault[/]", fault)
    table.add_row("took", f"{summary['elapsed_s']} s")
    console.print(table)
    console.print(f"session folder: {summary['session_dir']}", soft_wrap=True)
