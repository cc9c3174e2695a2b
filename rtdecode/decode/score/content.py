"""How much responses say of pictures, or of a part of their components only.

What a response says of a picture's components is a quadratic log-likelihood: a linear part of the response, and the
information of the model. Both are all that is needed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Float64 = NDArray[np.float64]

NEAR = 1.0
"""Variance, around a picture of calibration, of the components of pictures that are like it."""
_SURER = 2.0
"""How much more sure likelihoods of such pictures are. They are tempered for pictures that are known exactly, and would
say too little of those near them; 1.5 to 4 support as many trials."""
OTHERS = 1 / 0.3
"""Variance beforehand of components that are not asked for. Components have variance 1, but likelihoods are tempered:
with 1, more of what the others explain is taken for the part's own."""


def penalty(information: Float64, components: Float64) -> Float64:
    """Return what pictures (m, k) must explain to be likely: half the squared length of their own responses, (m,)."""
    return np.asarray(0.5 * ((components @ information) * components).sum(1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """What responses say of some components of a picture, whatever the others are: normal beforehand.

    Attributes
    ----------
    own : ndarray of shape (k,), bool
        Which components.
    take : ndarray of shape (q, k)
        From the linear part of the log-likelihood of all to that of these q.
    information : ndarray of shape (q, q)
        Of these.
    """

    own: NDArray[np.bool_]
    take: Float64
    information: Float64


def parts_of(information: Float64, group: NDArray[np.int64], n_groups: int) -> list[Part]:
    """Return the part of each group of components, given the information (k, k) and the group (k,) of each."""
    found = []
    for number in range(n_groups):
        own = group == number
        among = information[np.ix_(~own, ~own)] + np.eye(int((~own).sum())) / OTHERS
        through = np.linalg.solve(among, information[np.ix_(~own, own)]).T
        take = np.zeros((int(own.sum()), len(own)))
        take[:, own] = np.eye(len(take))
        take[:, ~own] = -through
        within = information[np.ix_(own, own)] - through @ information[np.ix_(~own, own)]
        found.append(Part(own=own, take=take, information=within))
    return found


def group_of(basis: NDArray[np.floating[Any]], groups: Sequence[slice]) -> NDArray[np.int64]:
    """Token group (k,) of each component, as its row of a basis (k, m) lies in one group only; -1 without groups."""
    if not groups:
        return np.full(len(basis), -1)
    return np.asarray(np.stack([np.abs(basis[:, group]).sum(1) for group in groups]).argmax(0), np.int64)


def content(
    told: Float64, pictures: Float64, information: Float64, part: Part | None = None, *, near: float = 0.0
) -> Float64:
    """How much likelier responses are with one of some pictures in them than with the average one, in nats.

    Parameters
    ----------
    told : ndarray of shape (n, k)
        Linear part of the log-likelihood of components.
    pictures : ndarray of shape (m, k)
    information : ndarray of shape (k, k)
    part : Part or None
        Ask for some components only.
    near : float
        Variance of components around those of the pictures: one like these will do; 0: one of these.

    Returns
    -------
    ndarray of shape (n,)
    """
    if part is not None:
        told, pictures, information = told @ part.take.T, pictures[:, part.own], part.information
    of_differing = np.zeros(len(told))
    if near:
        told, information = _SURER * told, _SURER * information
        one = np.eye(len(information))
        differing = np.linalg.inv(information + one / near)
        of_differing = 0.5 * ((told @ differing) * told).sum(1) - 0.5 * np.linalg.slogdet(one + near * information)[1]
        left = one - differing @ information
        told, information = told @ left, information @ left
    scores = told @ pictures.T - penalty(information, pictures)
    return np.asarray(of_differing + logsumexp(scores, axis=1) - np.log(len(pictures)))
