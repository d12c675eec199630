"""What the mask search tries: the space around the rule that it starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from nx46vx.inference.masks.parameters import MaskRule

if TYPE_CHECKING:
    from optuna.trial import Trial

#: Changes when a parameter or a range does: trials of another space are none of this one.
SPACE_VERSION: Final = 1

#: Whole numbers: name -> smallest, largest.
_COUNTS: Final = {
    "z_radius": (0, 3), "xy_radius": (0, 3), "slice_gap": (0, 3), "split_levels": (0, 5), "tunnel_radius": (0, 4),
}  # fmt: skip
#: Sizes, tried on a logarithmic scale; 1 is as good as off.
_SIZES: Final = {"split_min_size": (50, 5000), "hole_size": (1, 5000), "dust_min_size": (1, 3000)}
_SHARES: Final = {"doubt_weight": (0.0, 1.0), "max_doubt": (0.7, 1.0), "max_disagreement": (0.1, 0.5)}
#: Strong threshold, and by how much the weak one lies below it, as multiples of the expected surface.
_STRONG, _WEAKER = (0.1, 2.5), (1.0, 6.0)


def drawn(trial: Trial, start: MaskRule, *, thresholds: bool) -> MaskRule:
    """The rule that a trial proposes; ``thresholds``: whether those may move too. The border stays as it is."""
    found: dict[str, Any] = {name: trial.suggest_int(name, low, high) for name, (low, high) in _COUNTS.items()}
    found |= {name: trial.suggest_int(name, low, high, log=True) for name, (low, high) in _SIZES.items()}
    found |= {name: trial.suggest_float(name, low, high) for name, (low, high) in _SHARES.items()}
    found["slice_support"] = bool(trial.suggest_int("slice_support", 0, 1))
    if thresholds and start.per_volume:
        found["strong"] = trial.suggest_float("strong", *_STRONG, log=True)
        found["weak"] = found["strong"] * trial.suggest_float("weaker", *_WEAKER, log=True)
    elif thresholds:
        found["strong"] = trial.suggest_float("strong", 0.02, 0.98)
        found["weak"] = found["strong"] * trial.suggest_float("weaker", 0.2, 1.0)
    return replace(start, **found)


def start_values(start: MaskRule, *, thresholds: bool) -> dict[str, float]:
    """The parameters of the rule that the search starts from, moved into the space where they lie outside."""
    found: dict[str, float] = {
        name: min(max(getattr(start, name), low), high) for name, (low, high) in (_COUNTS | _SIZES).items()
    }
    found |= {name: min(max(getattr(start, name), low), high) for name, (low, high) in _SHARES.items()}
    found["slice_support"] = int(start.slice_support)
    if thresholds:
        low, high = _STRONG if start.per_volume else (0.02, 0.98)
        least, most = _WEAKER if start.per_volume else (0.2, 1.0)
        found["strong"] = min(max(start.strong, low), high)
        found["weaker"] = min(max(start.weak / start.strong, least), most)
    return found
