"""Three roles for cases: fit, rank, report. A case has one role for the whole run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nx46vx.errors import DataError
from nx46vx.runtime.digest import digest_bytes

Role = Literal["train", "validation", "holdout"]


@dataclass(frozen=True)
class Split:
    """Case ids by role: ``train`` fits, ``validation`` ranks and tunes, ``holdout`` is only reported."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    holdout: tuple[str, ...]

    def role(self, case_id: str) -> Role:
        for role, ids in (("train", self.train), ("validation", self.validation), ("holdout", self.holdout)):
            if case_id in ids:
                return role  # type: ignore[return-value]
        raise DataError("the case has no role in the split", where=case_id, fix="split the dataset again")

    def to_json(self) -> dict[str, list[str]]:
        return {"train": list(self.train), "validation": list(self.validation), "holdout": list(self.holdout)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Split:
        try:
            roles = [value["train"], value["validation"], value["holdout"]]
            if not all(isinstance(ids, list) and all(isinstance(one, str) for one in ids) for ids in roles):
                raise TypeError("roles have to be lists of case ids")
        except (KeyError, TypeError) as error:
            raise DataError("the saved split cannot be read", found=error, fix="split the dataset again") from error
        everyone = [case_id for ids in roles for case_id in ids]
        if len(set(everyone)) != len(everyone):
            raise DataError("the saved split gives a case two roles", found=sorted(everyone), fix="split it again")
        return cls(*(tuple(ids) for ids in roles))


def seeded_order(case_ids: Iterable[str], *, seed: int, purpose: str) -> list[str]:
    """Case ids in an order drawn from the seed.

    Each id is ranked by a SHA-512 over seed, purpose and id. So the order depends neither on the order given nor on
    any library's random stream, and one case more or less moves no other past its neighbours.
    """
    return sorted(case_ids, key=lambda case_id: (digest_bytes(f"{seed}/{purpose}/{case_id}".encode()), case_id))


def make_split(
    case_ids: Iterable[str], *, seed: int, validation_fraction: float, holdout_fraction: float
) -> Split:  # fmt: skip
    """Split by case; every role gets at least one, and each tuple is sorted.

    Raises:
        DataError: fewer than three cases, or an id given twice.
    """
    ids = list(case_ids)
    if len(set(ids)) != len(ids):
        twice = sorted({case_id for case_id in ids if ids.count(case_id) > 1})
        raise DataError("a case is named twice", found=", ".join(twice), fix="give every case one id")
    if len(ids) < 3:
        raise DataError(
            "a split into train, validation and hold-out needs three pairs or more", found=f"{len(ids)} usable pairs",
            fix="add pairs, or mend those that were skipped",
        )  # fmt: skip
    validation = max(1, round(validation_fraction * len(ids)))
    holdout = max(1, round(holdout_fraction * len(ids)))
    while validation + holdout >= len(ids):
        if validation >= holdout:
            validation -= 1
        else:
            holdout -= 1
    order = seeded_order(ids, seed=seed, purpose="split")
    return Split(
        train=tuple(sorted(order[validation + holdout :])),
        validation=tuple(sorted(order[:validation])),
        holdout=tuple(sorted(order[validation : validation + holdout])),
    )
