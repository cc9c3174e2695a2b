"""Predicts what a brain does that follows a film, window by window, from the film's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.film.features import FilmFeatures
from rtdecode.decode.families.encoding import MirageEncodingDescription
from rtdecode.decode.families.encoding.film_windows import DELAY_S, T_R_S, count_volumes, ensemble_weights, windows
from rtdecode.decode.networks.build import load
from rtdecode.decode.networks.film_encoder import MODALITIES, FilmEncoder
from rtdecode.errors import EngineError
from rtdecode.packs import EnginePack
from rtdecode.packs.film_prediction import FilmPrediction, PredictionTable
from rtdecode.packs.film_readout import FilmReadout

Float32 = NDArray[np.float32]
MEAN = "mean"
"""In place of a subject: the mean of all heads."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilmOrder:
    """What is asked of an encoder.

    Attributes
    ----------
    subject : str
        Of the training, as the pack names it, or ``mean``.
    readout : FilmReadout or None
        Of a new participant, in place of the heads; `subject`, `parcels`, `networks` and `scores` are then its own.
    parcels, networks : sequence of str
        Label of each column in the label image, and its network; empty: 1, 2, 3 and on, and none.
    scores : array of shape (members, parcels) or None
        Held-out correlation of each member of an ensemble; None: all count the same.
    ablate : bool
        Whether the modalities are also left out one at a time, which takes as long again for each.
    device : str
        As torch names it.
    """

    subject: str = MEAN
    readout: FilmReadout | None = None
    parcels: Sequence[str] = ()
    networks: Sequence[str] = ()
    scores: NDArray[np.float64] | None = None
    ablate: bool = True
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """What a film gives.

    Attributes
    ----------
    prediction : FilmPrediction
    trunk : array of shape (volumes, hidden), float32
        What the heads read, mean over the members: what a new participant's own parcels are fitted to.
    """

    prediction: FilmPrediction
    trunk: Float32


def encode_film(
    pack: EnginePack,
    features: FilmFeatures,
    order: FilmOrder,
    *,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Encoded:
    """Predict a film, one member and one window in memory at a time.

    Parameters
    ----------
    pack : EnginePack
        Of ``rtdecode engines import mirage-encoding``.
    features : FilmFeatures
    order : FilmOrder
    progress : callable
        Is given how many windows are done and how many there are.

    Raises
    ------
    EngineError
        The pack is of another family or lacks the subject, or features and pack do not fit.
    BundleError
        A file cannot be read.
    """
    said = pack.described(MirageEncodingDescription)
    about = features.about
    sizes = next(iter(said.stages.values())).sizes
    if (about.layers, about.values) != (sizes["layers"], sizes["features"]):
        raise EngineError(
            f"pack {pack.name}: expected features of {sizes['layers']} layers of {sizes['features']} values, got "
            f"{about.layers} of {about.values} of {about.film}: import the weights with the --layers of the features"
        )
    if order.readout is not None:
        order = _fitted(pack, order, order.readout, sizes["hidden"])
    elif order.subject not in (*said.subjects, MEAN):
        raise EngineError(
            f"pack {pack.name}: expected subject {', '.join(said.subjects)} or {MEAN}, got {order.subject}"
        )
    names = list(order.parcels) or [str(label) for label in range(1, sizes["parcels"] + 1)]
    if order.readout is None and len(names) != sizes["parcels"]:
        raise EngineError(f"pack {pack.name}: expected {sizes['parcels']} parcels, got {len(names)} names")
    weights = _weights(pack, order, len(said.stages), len(names))
    left_out = [m for m in features.present if order.ablate and len(features.present) > 1]
    passes: list[str | None] = [None, *left_out]
    found = {one: np.zeros((count_volumes(about.duration_s), len(names))) for one in passes}
    trunk = np.zeros((len(found[None]), sizes["hidden"]))
    attention = np.zeros((len(MODALITIES), about.layers))
    every = windows(about.duration_s, frames=sizes["frames"], volumes=sizes["volumes"])
    total, done = len(every) * len(said.stages), 0
    for stage, weight in zip(said.stages, weights, strict=True):
        network = load(pack, stage, device=order.device, dtype=torch.float32)
        assert isinstance(network, FilmEncoder)  # the family's only kind
        for window in every:
            given = [features.stretch(name, window.frames)[None].to(order.device) for name in MODALITIES]
            kept = slice(window.volumes.start, window.volumes.stop)
            for one in passes:
                keep = torch.tensor([[float(m in features.present and m != one) for m in MODALITIES]])
                with torch.inference_mode():
                    predicted, hidden, attended = network(*given, keep.to(order.device))
                read = hidden[0, : len(window.volumes)].cpu().numpy()
                if order.readout is None:
                    values = _of_subject(predicted[0], said.subjects, order.subject)
                    found[one][kept] += weight * values[: len(window.volumes)].cpu().numpy()
                else:
                    found[one][kept] += order.readout(read) / len(said.stages)
                if one is None:
                    trunk[kept] += read / len(said.stages)
                    attention += attended[0].cpu().numpy() * len(window.volumes) / (len(trunk) * len(said.stages))
            done += 1
            progress(done, total)
    profiles = {"attention": attention.astype(np.float32)}
    if left_out:
        profiles["ablation"] = _ablation(found)
    table = PredictionTable(
        film=about.film,
        duration_s=about.duration_s,
        t_r_s=T_R_S,
        delay_s=DELAY_S,
        parcels=names,
        networks=list(order.networks),
        subject=order.subject,
        modalities=list(features.present),
        absent=dict(about.absent),
        sources={
            "model": pack.identity,
            "features": features.identity,
            **({} if order.readout is None else {"readout": order.readout.identity}),
            **about.sources,
        },
    )
    made = FilmPrediction(about=table, predicted=found[None].astype(np.float32), profiles=profiles)
    return Encoded(prediction=made, trunk=trunk.astype(np.float32))


def _fitted(pack: EnginePack, order: FilmOrder, readout: FilmReadout, hidden: int) -> FilmOrder:
    """Let a readout say whose prediction it is, and of which parcels."""
    about = readout.about
    if about.model != pack.identity or len(readout.weights) != hidden:
        raise EngineError(
            f"pack {pack.name}: expected a participant that was fitted to this pack ({pack.identity}), got one fitted "
            f"to {about.model}: fit them anew with rtdecode fit-encoder, on predictions of this pack"
        )
    if order.parcels or order.scores is not None:
        raise EngineError(
            "expected neither --parcels nor --scores with a fitted participant: parcels are those that were measured, "
            "and members of an ensemble count the same"
        )
    return replace(order, subject=about.participant, parcels=about.parcels, networks=about.networks)


def _weights(pack: EnginePack, order: FilmOrder, members: int, parcels: int) -> NDArray[np.float64]:
    if order.scores is None:
        return np.full((members, parcels), 1.0 / members)
    if order.scores.shape != (members, parcels):
        raise EngineError(
            f"pack {pack.name}: expected scores of {members} members and {parcels} parcels, got {order.scores.shape}"
        )
    return ensemble_weights(order.scores)


def _of_subject(predicted: Tensor, subjects: Sequence[str], subject: str) -> Tensor:
    return predicted.mean(0) if subject == MEAN else predicted[list(subjects).index(subject)]


def _ablation(found: Mapping[str | None, NDArray[np.float64]]) -> Float32:
    """Correlation over time of the whole prediction with that without each modality; 1 where there is none."""
    whole = found[None] - found[None].mean(0)
    made = np.ones((len(MODALITIES), whole.shape[1]), np.float32)
    for place, name in enumerate(MODALITIES):
        if name in found:
            part = found[name] - found[name].mean(0)
            scale = np.sqrt((whole**2).sum(0) * (part**2).sum(0))
            made[place] = np.where(scale > 0, (whole * part).sum(0) / np.where(scale > 0, scale, 1.0), 1.0)
    return made
