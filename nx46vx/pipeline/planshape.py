"""What ``plan.json`` has to look like, whoever wrote it: checked before anything in it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, Field, model_validator

from nx46vx.errors import IncompatibleError
from nx46vx.model.fitplan import FitPlan
from nx46vx.runtime.record import read_record, understood

PLAN_VERSION = 1

_Count = Field(ge=0)


class _Case(BaseModel):
    case_id: str
    image: str
    label: str | None
    shape: tuple[int, int, int]
    image_digest: str
    label_digest: str | None
    counts: tuple[int, int, int] | None


class _Split(BaseModel):
    train: list[str]
    validation: list[str]
    holdout: list[str]


class _Candidate(BaseModel):
    candidate_id: str
    meta_neuron: int = _Count
    l1: float
    l2: float


class _Plan(BaseModel):
    identity: dict[str, str]
    dataset: str
    train_pairs: list[_Case]
    test: list[_Case]
    skipped: list[tuple[str, str]]
    split: _Split
    candidates: list[_Candidate]
    numeric_environment: dict[str, Any] | None
    estimate: dict[str, float] | None
    feature_digests: dict[str, str] | None = None
    fit: dict[str, Any] | None

    @model_validator(mode="after")
    def _known(self) -> _Plan:
        cases = {case.case_id for case in self.train_pairs}
        strange = [one for one in (*self.split.train, *self.split.validation, *self.split.holdout) if one not in cases]
        if strange:
            raise ValueError(f"the split names {strange[0]!r}, which is no pair")
        return self


def load_plan(path: Path) -> dict[str, Any]:
    """The plan as it stands; empty if there is none yet.

    Raises:
        IntegrityError: it is damaged; names the key.
        IncompatibleError: it is of another version.
    """
    try:
        value = read_record(path)
    except FileNotFoundError:
        return {}
    if value.get("plan_version") != PLAN_VERSION:
        raise IncompatibleError(
            "the plan is of another version", where=path, found=f"plan_version {str(value.get('plan_version'))[:40]}",
            fix="use the version that made it, or start a new run directory",
        )  # fmt: skip
    with understood(path):
        _Plan.model_validate_json(orjson.dumps(value), strict=True)
    return value


def fit_of(plan: dict[str, Any], path: Path) -> FitPlan | None:
    """The frozen fit in a plan; None before it is frozen.

    Raises:
        IntegrityError: it is damaged.
    """
    if not plan.get("fit"):
        return None
    with understood(path):
        return FitPlan.from_json(plan["fit"])
