"""The rule that makes masks: from the configuration, then thresholds chosen on validation volumes."""

from __future__ import annotations

from nx46vx.inference.masks.parameters import MaskRule
from nx46vx.settings import MaskSettings


def configured_rule(mask: MaskSettings) -> tuple[MaskRule, bool, bool]:
    """The rule that the configuration starts from, and whether its strong and its weak threshold are to be chosen.

    A threshold that is given is one of probability; with the other left to choose, that is one for all volumes too.
    """
    strong, weak = mask.strong_th, mask.weak_th
    per_volume = mask.thresholds == "volume" and strong == weak == "auto"
    neutral = 1.0 if per_volume else 0.5
    known = [level for level in (strong, weak) if level != "auto"]
    if known:
        neutral = known[0]
    rule = MaskRule(
        strong=neutral if strong == "auto" else strong, weak=neutral if weak == "auto" else weak, per_volume=per_volume,
        doubt_weight=mask.doubt_weight, max_doubt=mask.max_doubt, max_disagreement=mask.max_disagreement,
        z_radius=mask.z_radius, xy_radius=mask.xy_radius, slice_gap=mask.slice_gap, slice_support=mask.slice_support,
        split_levels=mask.split_levels, split_min_size=mask.split_min_size, tunnel_radius=mask.tunnel_radius,
        hole_size=mask.hole_size, border=mask.border, dust_min_size=mask.dust_min_size,
    )  # fmt: skip
    return rule, strong == "auto", weak == "auto"
