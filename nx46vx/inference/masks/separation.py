"""Sheets that touch are taken apart: at a higher threshold the contact between two wraps goes before the wraps do.

At each of several rising levels the cores (``p >= level``) of every component are found. Where a component has two
large cores or more, it is divided among them by the number of steps inside the component. Two parts stay one sheet if
they lie beside each other along the sheet; they are two sheets if one lies on top of the other, that is if the way from
part to part points along the sheet's normal where they touch. Between two sheets one layer of voxels is cleared.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
from scipy.ndimage import find_objects

from nx46vx.inference.masks.checks import check_not_negative, check_probability
from nx46vx.inference.masks.regions import regions, select, sizes

#: Parts are stacked if, at half the contacts, the way across is within 45 degrees of the normal.
_ALONG_NORMAL: Final = 0.7
_LOOKS = 64  # contacts that are looked at for each pair
_REACH = 6  # voxels around a contact that tell the normal
_HALF = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]  # one of each pair of opposites


def separate_sheets(mask: np.ndarray, probability: np.ndarray, levels: int, min_size: int) -> np.ndarray:
    """Take apart components in which sheets of at least ``min_size`` voxels lie on each other.

    Args:
        mask: bool or 0/1 integers ``(z, y, x)``.
        probability: floats ``(z, y, x)``.
        levels: how many thresholds are tried, evenly spread over the mask's own probabilities; 0: nothing is done.
        min_size: voxels of the smallest core that counts as a sheet.

    Returns:
        bool ``(z, y, x)``, a new array inside the mask.

    Raises:
        NX46Error: no volume, or no probabilities.
    """
    check_probability(probability)
    check_not_negative("split_levels", levels)
    parted = mask.astype(bool)
    if levels == 0 or not parted.any():
        return parted
    steps = np.linspace(0.0, 1.0, levels + 2)[1:-1]
    for level in np.quantile(probability[parted], steps, method="lower"):
        cores, count = regions(parted & (probability >= level))
        large = sizes(cores, count) >= max(min_size, 1)
        large[0] = False
        if np.count_nonzero(large) > 1:
            cores *= select(cores, large)
            _part_components(parted, cores)
    return parted


def _part_components(parted: np.ndarray, cores: np.ndarray) -> None:
    """Clear voxels of ``parted`` between the sheets of each component with two cores or more."""
    owners, count = regions(parted)
    inside = np.flatnonzero(cores)
    pairs = np.unique(np.stack([owners.ravel()[inside], cores.ravel()[inside]]), axis=1)
    crowded = np.bincount(pairs[0], minlength=count + 1) > 1
    for number, box in enumerate(find_objects(owners), start=1):
        if crowded[number]:
            component = owners[box] == number
            parts = grow(np.where(component, cores[box], 0).astype(np.int32), component)
            parted[box] &= ~_between(parts)


def grow(seeds: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Each voxel of ``inside`` gets the label of the seed fewest 26-steps away; the smallest label among equals.

    Args:
        seeds: int32 ``(z, y, x)``, 0 where there is none.
        inside: bool ``(z, y, x)``.

    Returns:
        int32 ``(z, y, x)``; 0 outside, and where no seed leads.
    """
    shape = tuple(size + 2 for size in seeds.shape)
    labels = np.pad(seeds, 1).ravel()
    free = np.pad(inside, 1).ravel() & (labels == 0)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    offsets = np.array([step @ strides for step in np.array([*_HALF, *(tuple(-d for d in step) for step in _HALF)])])
    front = np.flatnonzero(labels)
    while front.size:
        reached = (front[:, None] + offsets).ravel()
        owner = np.repeat(labels[front], len(offsets))
        open_ = free[reached]
        reached, owner = reached[open_], owner[open_]
        order = np.lexsort((owner, reached))
        front, first = np.unique(reached[order], return_index=True)
        labels[front] = owner[order][first]
        free[front] = False
    return labels.reshape(shape)[1:-1, 1:-1, 1:-1]


def _between(parts: np.ndarray) -> np.ndarray:
    """The voxels to clear: of the smaller of two sheets that touch, those that touch."""
    names = np.unique(parts)
    names = names[names > 0]
    voxels = np.bincount(np.searchsorted(names, parts[parts > 0]), minlength=len(names))
    contacts = _contacts(parts)
    sheet = np.arange(len(names))
    at = np.searchsorted(names, contacts[:, 3:])
    for a, b in np.unique(at[at[:, 0] < at[:, 1]], axis=0):
        touching = contacts[(at == (a, b)).all(axis=1), :3]
        if not _stacked(parts, touching, int(names[a]), int(names[b])):
            sheet[sheet == sheet[b]] = sheet[a]
    # A voxel is listed as a's with a neighbour in b, the neighbour as b's with one in a: one side is cleared.
    size = np.bincount(sheet, weights=voxels, minlength=len(names))
    ours, theirs = sheet[at].T
    smaller = (size[ours] < size[theirs]) | ((size[ours] == size[theirs]) & (ours > theirs))
    clear = np.zeros(parts.shape, dtype=bool)
    clear[tuple(contacts[(ours != theirs) & smaller, :3].T)] = True
    return clear


def _contacts(parts: np.ndarray) -> np.ndarray:
    """``(n, 5)``: z, y, x of each voxel that touches another part, its own part, the other; sorted, no row twice."""
    rows = []
    for step in _HALF:
        here = tuple(slice(max(-d, 0), size - max(d, 0)) for d, size in zip(step, parts.shape, strict=True))
        there = tuple(slice(max(d, 0), size - max(-d, 0)) for d, size in zip(step, parts.shape, strict=True))
        a, b = parts[here], parts[there]
        place = np.argwhere((a != b) & (a > 0) & (b > 0))
        if place.size:
            own, other = a[tuple(place.T)], b[tuple(place.T)]
            low = [part.start for part in here], [part.start for part in there]
            rows.append(np.column_stack([place + low[0], own, other]))
            rows.append(np.column_stack([place + low[1], other, own]))
    return np.unique(np.concatenate(rows), axis=0) if rows else np.zeros((0, 5), int)


def _stacked(parts: np.ndarray, contacts: np.ndarray, ours: int, theirs: int) -> bool:
    """Whether two parts lie on each other where they touch, rather than beside each other."""
    stride = -(-len(contacts) // _LOOKS)
    votes = []
    for place in contacts[::stride]:
        window = parts[tuple(slice(max(int(p) - _REACH, 0), int(p) + _REACH + 1) for p in place)]
        here, there = np.argwhere(window == ours), np.argwhere(window == theirs)
        across = there.mean(axis=0) - here.mean(axis=0)
        # the sheet's normal: along it each part by itself is thinnest
        spread = sum(
            (np.cov(part.T, bias=True) * len(part) for part in (here, there) if len(part) > 1), np.zeros((3, 3))
        )
        normal = np.linalg.eigh(spread)[1][:, 0]
        length = float(np.linalg.norm(across))
        votes.append(length > 0 and abs(float(across @ normal)) >= _ALONG_NORMAL * length)
    return 2 * sum(votes) > len(votes)
