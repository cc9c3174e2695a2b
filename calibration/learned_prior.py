"""A group prior from bundles to a file, and from the file to what is known of a participant's voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.common_space import SPACE, common_places
from calibration.encoding.encoder import PriorOf
from calibration.encoding.group_prior import GroupPrior, PersonStatistics, PlacedPrior, learn_group_prior
from calibration.encoding.maps import MapPrior
from calibration.encoding.picture_space import COUNTS, PictureSpace
from calibration.targets import Targets
from rtdecode.decode.score.encoding import encoding_from
from rtdecode.errors import CalibrationError
from rtdecode.estimate.calibrated import MASK, REFERENCE
from rtdecode.packs import EnginePack, ParticipantBundle, open_participant
from rtdecode.packs.group_prior import GroupPriorHead, open_group_prior, save_group_prior
from rtdecode.packs.sealed import read_tensors

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

STATISTICS = "statistics.safetensors"
_COUNT = 24
"""Components of a token group, where there are not two of them."""


def statistics_tensors(targets: Targets, responses: Float32, voxels: Ints) -> dict[str, NDArray[Any]]:
    """Sum up a calibration for those who learn from many: what its pictures and responses are together, no trial's own.

    Parameters
    ----------
    targets : Targets
        Of the calibration trials.
    responses : ndarray of shape (n, s), float32
        Standardised.
    voxels : ndarray of shape (s,), int64
        Their places in the mask.
    """
    features = np.column_stack([np.ones(len(responses)), targets.components])
    groups = [np.full(block.stop - block.start, place) for place, block in enumerate(targets.blocks)]
    return {
        "gram": features.T @ features,
        "products": features.T.astype(np.float32) @ responses,
        "voxels": voxels.astype(np.int64),
        "group": np.concatenate(groups).astype(np.int64),
    }


def learn_from_bundles(folders: Sequence[Path], out: Path) -> str:
    """Learn a group prior from the bundles of earlier participants and seal it; return its identity.

    Raises
    ------
    CalibrationError
        Fewer than two participants, two bundles of one, bundles of different packs, or one that keeps no statistics; or
        there is such a file, which sessions that were calibrated with it are read with.
    BundleError
        A bundle cannot be opened.
    """
    if out.exists():
        raise CalibrationError(
            f"{out}: exists already, and sessions that were calibrated with it need it; name a new --out"
        )
    bundles = [open_participant(folder) for folder in folders]
    _check(bundles)
    people = [_Person(bundle) for bundle in bundles]
    space, group = _common_pictures(people)
    prior = learn_group_prior([person.within(space) for person in people], space.spectrum)
    first = bundles[0].provenance
    return save_group_prior(
        out,
        GroupPriorHead(
            pack=first.pack,
            pack_name=first.pack_name,
            space=SPACE,
            cell_mm=prior.cell_mm,
            people=prior.people,
            trials=sum(bundle.provenance.trials for bundle in bundles),
            constant_variance=prior.constant_variance,
        ),
        {
            "origin_mm": prior.origin_mm,
            "mean": prior.mean,
            "spectrum": prior.spectrum,
            "covariance": prior.covariance,
            "basis": space.basis.astype(np.float32),
            "token_mean": space.token_mean.astype(np.float32),
            "group": group,
        },
    )


def _check(bundles: Sequence[ParticipantBundle]) -> None:
    names = [bundle.provenance.participant for bundle in bundles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CalibrationError(
            f"expected one bundle a participant, got several of {', '.join(twice)}; name the best one of each"
        )
    if len(bundles) < 2:
        raise CalibrationError(f"expected bundles of two or more participants, got {len(bundles)}")
    first = bundles[0]
    for bundle in bundles[1:]:
        if bundle.provenance.pack != first.provenance.pack:
            raise CalibrationError(
                f"{bundle.folder}: expected pictures described by pack {first.provenance.pack_name} "
                f"({first.provenance.pack[:12]}) as in {first.folder}, got {bundle.provenance.pack_name} "
                f"({bundle.provenance.pack[:12]})"
            )


class _Person:
    """An earlier participant, as the bundle tells."""

    def __init__(self, bundle: ParticipantBundle) -> None:
        path = bundle.folder / STATISTICS
        if not path.is_file():
            raise CalibrationError(
                f"{bundle.folder}: expected {STATISTICS}, which bundles of before lack; calibrate again"
            )
        kept, encoding = read_tensors(path), encoding_from(bundle.encoding)
        self.trials = bundle.provenance.trials
        self.gram, self.products, self.group = kept["gram"], kept["products"], kept["group"]
        self.basis = encoding.basis.astype(np.float64)
        self.token_mean = encoding.token_mean.astype(np.float64)
        self.places_mm = common_places(bundle.folder / REFERENCE, bundle.folder / MASK)[kept["voxels"]]

    def within(self, space: PictureSpace) -> PersonStatistics:
        """Return the statistics as if the pictures had been described in a space from the first."""
        size = len(space.basis)
        turn = np.zeros((len(self.gram), 1 + size))
        turn[0, 0] = 1.0
        turn[0, 1:] = (self.token_mean - space.token_mean) @ space.basis.T
        turn[1:, 1:] = self.basis @ space.basis.T
        return PersonStatistics(
            gram=turn.T @ self.gram @ turn,
            products=turn.T.astype(np.float32) @ self.products,
            places_mm=self.places_mm,
        )


def _common_pictures(people: Sequence[_Person]) -> tuple[PictureSpace, Ints]:
    """Find the components of the pictures of all people together, and the token group of each.

    The components of a person are whitened: their rows, stacked, have the covariance of the tokens that they keep.
    """
    share = np.array([person.trials for person in people]) / sum(person.trials for person in people)
    mean = np.sum([part * person.token_mean for part, person in zip(share, people, strict=True)], axis=0)
    numbers = np.unique(np.concatenate([person.group for person in people]))
    counts = COUNTS if len(numbers) == len(COUNTS) else (_COUNT,) * len(numbers)
    bases, spectrum, groups = [], [], []
    for number, count in zip(numbers, counts, strict=True):
        rows = []
        for part, person in zip(share, people, strict=True):
            own = person.basis[person.group == number]
            away = np.where(np.any(own != 0, axis=0), person.token_mean - mean, 0.0)
            rows += [np.sqrt(part) * own, np.sqrt(part) * away[None]]
        stacked = np.concatenate(rows)
        squares, turn = np.linalg.eigh(stacked @ stacked.T)
        kept = min(count, int(np.sum(squares > 1e-9 * squares[-1])))
        squares, turn = squares[::-1][:kept], turn[:, ::-1][:, :kept]
        bases.append((turn / squares).T @ stacked)  # axes over deviations: (turn / s)' stacked is an axis
        spectrum.append(squares / np.trace(stacked @ stacked.T) / len(numbers))
        groups.append(np.full(kept, number, np.int64))
    space = PictureSpace(basis=np.concatenate(bases), token_mean=mean, spectrum=np.concatenate(spectrum))
    return space, np.concatenate(groups)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnedPrior:
    """What earlier participants taught.

    Attributes
    ----------
    identity : str
        Of the file.
    people : int
    pictures : PictureSpace
    group : ndarray of shape (k,), int64
        Token group of each component.
    maps : GroupPrior
    """

    identity: str
    people: int
    pictures: PictureSpace
    group: Ints
    maps: GroupPrior

    def targets(self, tokens: NDArray[np.floating[Any]]) -> Targets:
        """Describe the picture of each trial, given its tokens (n, t, d)."""
        basis = self.pictures.basis
        edges = np.flatnonzero(np.diff(self.group)) + 1
        starts, ends = [0, *edges.tolist()], [*edges.tolist(), len(self.group)]
        power = np.square(basis).sum(1)
        return Targets(
            components=self.pictures(tokens),
            basis=basis / power[:, None],
            token_mean=self.pictures.token_mean,
            blocks=tuple(slice(start, end) for start, end in zip(starts, ends, strict=True)),
            variance=1 / power,
        )

    def priors(self, places_mm: Float64) -> list[PriorOf]:
        """Return what is known of the maps of voxels at places (v, 3), and what would be without the others."""
        scratch = MapPrior(covariance=np.diag(self.pictures.spectrum))
        return [PlacedPrior(group=self.maps, places_mm=places_mm), lambda _: scratch]


def load_prior(path: Path, pack: EnginePack) -> LearnedPrior:
    """Open a group prior for use with a pack.

    Raises
    ------
    BundleError
        It cannot be opened.
    CalibrationError
        It describes pictures, or places, in another way.
    """
    opened = open_group_prior(path)
    head, tensors = opened.head, opened.tensors
    if head.pack != pack.identity:
        raise CalibrationError(
            f"{path}: expected a group prior of pictures described by pack {pack.name} ({pack.identity[:12]}), got "
            f"{head.pack_name} ({head.pack[:12]}); learn one from bundles of this pack"
        )
    if head.space != SPACE:
        raise CalibrationError(
            f"{path}: expected places in the space {SPACE!r}, got {head.space!r}; learn it again with this version"
        )
    return LearnedPrior(
        identity=opened.identity,
        people=head.people,
        pictures=PictureSpace(
            basis=tensors["basis"].astype(np.float64),
            token_mean=tensors["token_mean"].astype(np.float64),
            spectrum=tensors["spectrum"],
        ),
        group=tensors["group"],
        maps=GroupPrior(
            origin_mm=tensors["origin_mm"],
            cell_mm=head.cell_mm,
            mean=tensors["mean"],
            constant_variance=head.constant_variance,
            spectrum=tensors["spectrum"],
            covariance=tensors["covariance"],
            people=head.people,
        ),
    )
