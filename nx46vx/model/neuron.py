"""A meta-neuron: its view of the pool, its bootstrap, the standardisation of its columns, and its logits.

    z = b + sum_f ( w_f x_f + alpha_f q_f + beta_f h_f )

x_f is the standardised feature, q_f its square and h_f its spatial gradient magnitude, both centred and scaled as
well (with the bootstrap's weights): that keeps the intercept apart from the rest and the curvature small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nx46vx.errors import DataError
from nx46vx.model.samples import Chunk, FitData, Samples
from nx46vx.runtime.digest import digest_array, digest_json


@dataclass(frozen=True)
class NeuronSpec:
    """What defines a meta-neuron, frozen before its first fit. Tuples of floats are exact in JSON.

    ``shift`` and ``scale`` (3F each) standardise x, q = ((x - shift)/scale)^2, and h. ``curvature`` is the largest
    eigenvalue of the bound 1/4 D^T W D on the cross-entropy's Hessian. ``prior`` is the weighted share of positives
    in the bootstrap; ``natural_prior`` that of the training volumes. ``log_variance`` is the denominator of
    lambda_dyn.
    """

    meta_neuron: int
    view: tuple[str, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    curvature: float
    prior: float
    natural_prior: float
    log_variance: float
    weights_digest: str

    @property
    def columns(self) -> int:
        return 3 * len(self.view) + 1

    @property
    def digest(self) -> str:
        return digest_json(asdict(self))

    @property
    def prior_shift(self) -> float:
        """What has to be added to a logit fitted on the bootstrap to hold at the natural prevalence."""
        return logit(self.natural_prior) - logit(self.prior)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"digest": self.digest}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NeuronSpec:
        fields = {name: value[name] for name in cls.__dataclass_fields__}
        for name in ("view", "shift", "scale"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def logit(p: float) -> float:
    return float(np.log(p) - np.log1p(-p))


def fold(spec: NeuronSpec, theta: np.ndarray) -> np.ndarray:
    """Weights over the columns (x, x^2, g, 1) with x standardised and the rest raw; shape of ``theta`` (3F + 1, ...).

    The logits are the same; the centring and scaling of the last two thirds goes into the weights.
    """
    f = len(spec.view)
    shift, scale = np.array(spec.shift), np.array(spec.scale)
    tail = (slice(f, 3 * f),) + (None,) * (theta.ndim - 1)
    folded = theta.copy()
    folded[f : 3 * f] = theta[f : 3 * f] / scale[tail]
    folded[-1] = theta[-1] - np.add.reduce(np.ascontiguousarray(folded[f : 3 * f] * shift[tail]), axis=0)
    return folded


def unfold_gradient(spec: NeuronSpec, gradient: np.ndarray) -> np.ndarray:
    """The gradient over the standardised columns from that over (x, x^2, g, 1); shape (3F + 1, ...)."""
    f = len(spec.view)
    shift, scale = np.array(spec.shift), np.array(spec.scale)
    tail = (slice(f, 3 * f),) + (None,) * (gradient.ndim - 1)
    unfolded = gradient.copy()
    unfolded[f : 3 * f] = (gradient[f : 3 * f] - shift[tail] * gradient[-1]) / scale[tail]
    return unfolded


def neuron_logits(spec: NeuronSpec, theta: np.ndarray, x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Logits at the natural prevalence (n,) float64, from raw features and gradients of the view, (F, n) each."""
    f = len(spec.view)
    weights = fold(spec, theta)
    z = np.full(x.shape[1], weights[-1] + spec.prior_shift)
    for row in range(f):
        s = (x[row].astype(np.float64) - spec.shift[row]) / spec.scale[row]
        z += weights[row] * s
        z += weights[f + row] * (s * s)
        z += weights[2 * f + row] * g[row]
    return z


def bootstrap(data: FitData, seed: int, meta_neuron: int) -> np.ndarray:
    """How often each group of training samples is drawn for a meta-neuron: int64 (groups,), sums to the groups."""
    _, groups = data.train_groups
    rng = _generator(seed, meta_neuron, 1)
    return rng.multinomial(groups, np.full(groups, 1.0 / groups))


def view_generator(seed: int, meta_neuron: int) -> np.random.Generator:
    """The random numbers that draw a meta-neuron's view."""
    return _generator(seed, meta_neuron, 0)


def _generator(seed: int, meta_neuron: int, use: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(meta_neuron,)).spawn(2)[use])


def case_weights(data: FitData, multiplicity: np.ndarray) -> list[np.ndarray]:
    """Bootstrap weight of each training sample, per case, float32."""
    ids, _ = data.train_groups
    return [multiplicity[case].astype(np.float32) for case in ids]


def prepare_neuron(
    data: FitData, seed: int, meta_neuron: int, view: Sequence[str], *, multiplicity: np.ndarray | None = None
) -> NeuronSpec:
    """Draw the bootstrap and measure everything in a ``NeuronSpec``: three passes over the view's training samples.

    ``multiplicity``: int64 (groups,), how often each group of samples counts, instead of a bootstrap.

    Raises:
        DataError: the bootstrap holds a single class, or a feature of the view does not vary.
    """
    f, rows = len(view), data.rows(view)
    multiplicity = bootstrap(data, seed, meta_neuron) if multiplicity is None else multiplicity
    weights = case_weights(data, multiplicity)
    total = float(sum(w.sum(dtype=np.float64) for w in weights))
    positive = float(sum(w[case.y == 1].sum(dtype=np.float64) for w, case in zip(weights, data.train, strict=True)))
    if not 0.0 < positive < total:
        raise DataError(
            "the bootstrap of a meta-neuron holds a single class", where=f"meta-neuron {meta_neuron}",
            found=f"{positive:.0f} positives of {total:.0f}", fix="use more training cases or samples",
        )  # fmt: skip

    def mean(columns: Iterator[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        return np.add.reduce([(block * w).sum(axis=1) for block, w in columns]) / total

    def deviation(center: np.ndarray, columns: Iterator[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        return np.sqrt(mean(((block - center[:, None]) ** 2, w) for block, w in columns))

    def raw() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for chunk in data.train_chunks:
            w = weights[chunk.case][chunk.start : chunk.stop].astype(np.float64)
            yield block_of(data.train, chunk, rows), w

    center = mean(raw())
    spread = deviation(center, raw())
    flat = [view[int(row) % f] for row in np.flatnonzero(~(spread > 1e-12 * np.maximum(np.abs(center), 1e-30)))]
    if flat:
        raise DataError("a feature does not vary over the training samples", where=f"meta-neuron {meta_neuron}",
                        found=", ".join(flat), fix="check that the volumes are not constant")  # fmt: skip

    def squares() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for block, w in raw():
            yield ((block[:f] - center[:f, None]) / spread[:f, None]) ** 2, w

    square_center = np.ones(f)  # the weighted mean square of a standardised column
    square_spread = deviation(square_center, squares())
    shift = np.concatenate([center[:f], square_center, center[f:]])
    scale = np.concatenate([spread[:f], np.maximum(square_spread, 1e-6), spread[f:]])
    gram = np.zeros((3 * f + 1, 3 * f + 1))
    for block, w in raw():
        design = design_columns(block, shift, scale)
        gram += (design * w) @ design.T
    return NeuronSpec(
        meta_neuron=meta_neuron,
        view=tuple(view),
        shift=tuple(shift.tolist()),
        scale=tuple(scale.tolist()),
        curvature=0.25 * float(np.linalg.eigvalsh(gram / total)[-1]),
        prior=positive / total,
        natural_prior=data.natural_prior,
        log_variance=_log_variance(data, rows[:f], center[:f], spread[:f]),
        weights_digest=digest_array(multiplicity),
    )


def design_columns(block: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The standardised design (3F + 1, n) float64 of raw features and gradients (2F, n)."""
    f = block.shape[0] // 2
    x = (block[:f] - shift[:f, None]) / scale[:f, None]
    return np.concatenate(
        [
            x,
            (x * x - shift[f : 2 * f, None]) / scale[f : 2 * f, None],
            (block[f:] - shift[2 * f :, None]) / scale[2 * f :, None],
            np.ones((1, block.shape[1])),
        ]
    )


def block_of(cases: Sequence[Samples], chunk: Chunk, rows: np.ndarray) -> np.ndarray:
    """Raw features and gradients of a view (2F, n) in float64."""
    return cases[chunk.case].features[rows, chunk.start : chunk.stop].astype(np.float64)


def _log_variance(data: FitData, rows: np.ndarray, center: np.ndarray, spread: np.ndarray) -> float:
    """mean_f log(1 + Var(x_f)) of the standardised features over the validation samples."""
    total = data.validation_samples
    first, second = np.zeros(rows.size), np.zeros(rows.size)
    for chunk in data.validation_chunks:
        x = (block_of(data.validation, chunk, rows) - center[:, None]) / spread[:, None]
        first += x.sum(axis=1)
        second += (x * x).sum(axis=1)
    variance = np.maximum(second / total - (first / total) ** 2, 0.0)
    return float(np.log1p(variance).mean())
