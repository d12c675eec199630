"""Other people's solvers of the same problem: how long each takes until it is as good as we are."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from nx46vx.bench.dependencies import need
from nx46vx.bench.designs import Design

#: How much above our objective a peer's may be.
TOLERANCE = 1e-3
#: Passes over the samples, or outer iterations, that a peer is tried with, one after the other.
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

#: Fits a design with (l1, l2) in so many steps; weights (3F + 1,), the intercept last.
Solver = Callable[[Design, float, float, int], np.ndarray]


def need_peers() -> None:
    """The peers are there.

    Raises:
        UsageError: they are not installed.
    """
    need("scikit-learn and skglm", "skglm", "sklearn")


def saga(design: Design, l1: float, l2: float, steps: int) -> np.ndarray:
    """scikit-learn's SAGA (Defazio et al. 2014), which minimises C sum loss + r |w|_1 + (1 - r)/2 |w|^2."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=1 / (design.y.size * (l1 + l2)), l1_ratio=l1 / (l1 + l2), solver="saga", tol=1e-12, max_iter=steps,
        random_state=0, **_elasticnet(),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(design.columns, design.y)
    return np.append(model.coef_[0], model.intercept_).astype(np.float64)


def prox_newton(design: Design, l1: float, l2: float, steps: int) -> np.ndarray:
    """skglm's ProxNewton (Bertrand et al. 2022), with the intercept last and labels -1 and 1."""
    from skglm.datafits import Logistic
    from skglm.penalties import L1_plus_L2
    from skglm.solvers import ProxNewton

    datafit, penalty = Logistic(), L1_plus_L2(l1 + l2, l1 / (l1 + l2))
    if _version("skglm") < (0, 5):  # from then on the solver compiles them itself
        from skglm.utils.jit_compilation import compiled_clone

        datafit, penalty = compiled_clone(datafit), compiled_clone(penalty)
    solver = ProxNewton(tol=1e-12, max_iter=steps, fit_intercept=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theta, *_ = solver.solve(design.by_columns, 2.0 * design.y - 1.0, datafit, penalty)
    return np.asarray(theta, dtype=np.float64)


def seconds_to_reach(solver: Solver, design: Design, l1: float, l2: float, goal: float) -> tuple[float, int]:
    """Seconds of the shortest fit whose objective is at most ``goal``, and its steps; infinite if none is."""
    _ = design.by_columns  # made outside of what is timed
    for steps in STEPS:
        started = time.perf_counter()
        theta = solver(design, l1, l2, steps)
        seconds = time.perf_counter() - started
        if design.objective(theta, l1, l2) <= goal:
            return seconds, steps
    return float("inf"), STEPS[-1]


def search_seconds(
    design: Design, penalties: Sequence[tuple[float, float]], passes: Sequence[int] | None = None
) -> float:  # fmt: skip
    """Seconds that ``GridSearchCV(n_jobs=2)`` takes for (l1, l2), each judged on a tenth of the samples.

    SAGA passes over the samples as often as ``passes`` says for each; unless given, until scikit-learn's own tolerance
    or limit of passes ends it.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    estimator = LogisticRegression(solver="saga", random_state=0, **_elasticnet())
    space = [{"C": [1 / (design.y.size * (l1 + l2))], "l1_ratio": [l1 / (l1 + l2)]} for l1, l2 in penalties]
    if passes is not None:
        space = [{**one, "max_iter": [most], "tol": [1e-12]} for one, most in zip(space, passes, strict=True)]

    def search(size: int) -> float:
        split = PredefinedSplit(np.where(np.arange(size) % 10 == 0, 0, -1))
        search = GridSearchCV(estimator, space, scoring="neg_log_loss", n_jobs=2, refit=False, cv=split)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            search.fit(design.columns[:size], design.y[:size])
        return time.perf_counter() - started

    search(min(design.y.size, 1000))  # its processes are up before
    return search(design.y.size)


def _elasticnet() -> dict[str, str]:
    return {"penalty": "elasticnet"} if _version("scikit-learn") < (1, 8) else {}


def _version(package: str) -> tuple[int, ...]:
    from importlib.metadata import version

    return tuple(int(part) for part in version(package).split(".")[:2])
