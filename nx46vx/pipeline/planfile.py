"""``plan.json``: cases, split and candidates first; views, bootstraps and scales once they are frozen."""

from __future__ import annotations

from typing import Any

from nx46vx import __version__
from nx46vx.errors import IncompatibleError
from nx46vx.features.pool import feature_names
from nx46vx.logs import say
from nx46vx.model.candidates import Grid
from nx46vx.model.fitplan import FitPlan
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.planshape import PLAN_VERSION, fit_of, load_plan
from nx46vx.pipeline.session import Session
from nx46vx.pipeline.signature import program_identity
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.digest import digest_json
from nx46vx.runtime.numeric import numeric_environment
from nx46vx.settings import result_keys


def identity_of(session: Session, cases: Cases) -> dict[str, str]:
    """Digests that a checkpoint has to share with the run that continues it."""
    settings = session.settings
    return {
        "config": digest_json(result_keys(settings)),
        "data": cases.dataset.digest,
        "grid": digest_json(settings.grid.model_dump(mode="json")),
        **program_identity(),
    }


def read_plan(session: Session) -> dict[str, Any]:
    """The plan as it stands; empty if there is none yet. Raises what ``load_plan`` raises."""
    return load_plan(session.paths.plan)


def write_plan(session: Session, cases: Cases, fit: FitPlan | None, extra: dict[str, Any] | None = None) -> None:
    """Write the plan, with the frozen fit once there is one; keeps what ``extra`` said before."""
    settings = session.settings
    before = read_plan(session)
    grid = Grid.from_settings(settings.grid)
    neurons = range(settings.grid.meta_neurons) if fit is None else range(len(fit.neurons))
    write_json(
        session.paths.plan,
        {
            "plan_version": PLAN_VERSION,
            "version": __version__,
            "run_id": session.run_id,
            "reduced": settings.reduced,
            "identity": identity_of(session, cases),
            **cases.to_json(),
            "feature_pool": list(feature_names()),
            "candidates": [candidate.to_json() for candidate in grid.candidates(neurons)],
            "max_iter": settings.grid.max_iter,
            "numeric_environment": before.get("numeric_environment") or numeric_environment(session.device),
            "estimate": (extra or {}).get("estimate", before.get("estimate")),
            "feature_digests": (extra or {}).get("feature_digests", before.get("feature_digests")),
            "fit": fit.to_json() if fit is not None else None,
        },
    )


def frozen_fit(session: Session, cases: Cases) -> FitPlan | None:
    """The fit that an earlier session froze, or None.

    Raises:
        IncompatibleError: the dataset, the feature pool or the grid is no longer the plan's; names what differs.
    """
    plan = read_plan(session)
    if not plan.get("fit"):
        return None
    asked, stored = identity_of(session, cases), plan["identity"]
    differing = sorted(key for key in asked.keys() | stored.keys() if asked.get(key) != stored.get(key))
    if differing:
        session.log.emit("RESUME_INCOMPATIBLE", differing=differing)
        raise IncompatibleError(
            "this run was planned for something else", where=session.paths.plan, found=", ".join(differing) + " differ",
            fix="restore the dataset and version it was planned for, or choose another --out",
        )  # fmt: skip
    _compare_numerics(session, plan.get("numeric_environment") or {})
    return fit_of(plan, session.paths.plan)


def keep_feature_digests(session: Session, cases: Cases, digests: dict[str, str]) -> None:
    """Until the fit is frozen, the plan takes the digests of the samples' arrays, by cache key. After that, samples
    that were computed anew, here or on another device, have to be those it was frozen on.

    Raises:
        IncompatibleError: ``strict_numeric`` is set and they are not.
    """
    plan = read_plan(session)
    stored = plan.get("feature_digests")
    if plan.get("fit") and stored is None:  # a version that kept none froze it
        return
    session.log.emit("FEATURES_DIGEST", cases=len(digests), digest=digest_json(digests))
    if not plan.get("fit"):
        session.log.sync()  # the log vouches for what the plan says
        write_plan(session, cases, None, {"feature_digests": digests})
        return
    stored = stored or {}
    differing = sorted(key for key in stored.keys() & digests.keys() if stored[key] != digests[key])
    if not differing:
        return
    session.differing.append("features")
    session.log.emit("RESUME_FEATURES_DIFFER", keys=differing, strict=session.settings.strict_numeric)
    say(f"the features of {len(differing)} cases are not, bit for bit, those that the run was planned with")
    if session.settings.strict_numeric:
        raise IncompatibleError(
            "features differ from those that the run was planned with", where=session.paths.plan,
            found=f"{len(differing)} cases, the first has key {differing[0][:16]}",
            fix="bring the feature cache of the first session, or continue without strict_numeric",
        )  # fmt: skip


def _compare_numerics(session: Session, stored: dict[str, Any]) -> None:
    """Say so before anything is computed if the last bits may differ from the run's first session.

    Raises:
        IncompatibleError: ``strict_numeric`` is set.
    """
    here = numeric_environment(session.device)
    differing = {key: [stored.get(key), here.get(key)] for key in sorted(stored.keys() | here.keys())
                 if stored.get(key) != here.get(key)}  # fmt: skip
    if not differing:
        return
    session.log.emit("RESUME_NUMERIC_ENV_DIFFERS", differing=differing, strict=session.settings.strict_numeric)
    say(f"the numeric environment differs from the run's first session ({', '.join(differing)}): bits may differ")
    if session.settings.strict_numeric:
        raise IncompatibleError(
            "the numeric environment differs from the run's", where=session.paths.plan, found=differing,
            fix="continue where it was begun, or without strict_numeric",
        )  # fmt: skip
