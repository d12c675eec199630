"""From probabilities to a mask: all steps in their order.

Arrays are ``(z, y, x)``; radii and sizes are in voxels. Every step is integer or comparison arithmetic on one thread,
so the same probabilities give the same mask everywhere.
"""

from __future__ import annotations

import numpy as np

from nx46vx.inference.masks.border import clear_border
from nx46vx.inference.masks.closing import closing
from nx46vx.inference.masks.doubt import Prediction, trusted
from nx46vx.inference.masks.dust import remove_dust
from nx46vx.inference.masks.hysteresis import hysteresis
from nx46vx.inference.masks.parameters import MaskParameters, MaskRule
from nx46vx.inference.masks.plugging import fill_cavities, plug_tunnels
from nx46vx.inference.masks.profile import VolumeProfile
from nx46vx.inference.masks.separation import separate_sheets
from nx46vx.inference.masks.slices import bridge_slices, drop_unsupported

#: The smallest normal float32: the least threshold, so that a probability of 0 is below every one.
_POSSIBLE = float(np.finfo(np.float32).tiny)


def make_mask(prediction: Prediction, parameters: MaskParameters) -> np.ndarray:
    """Hysteresis from seeds that are sure, slice continuity, closing, separation, plugging, border, dust.

    Separation comes after what may join sheets, plugging joins none, and the border goes before the dust, so that a
    mask has neither foreground near a face nor a component below the size. A probability of exactly 0 (the scan is 0
    there) is never foreground, whatever the thresholds, and no step fills it.

    Returns:
        uint8 ``(z, y, x)`` of 0 and 1; all 0 where no probability reaches ``strong_th``.

    Raises:
        NX46Error: not a 3D array of floats, or NaN in it.
    """
    sure = trusted(prediction, parameters.max_deviation, parameters.max_disagreement)
    weak, strong = (max(level, _POSSIBLE) for level in (parameters.weak_th, parameters.strong_th))
    mask = hysteresis(prediction.probability, strong, weak, trusted=sure)
    if parameters.slice_support:
        mask = drop_unsupported(mask)
    mask = bridge_slices(mask, parameters.slice_gap)
    mask = closing(mask, parameters.z_radius, parameters.xy_radius)
    mask = separate_sheets(mask, prediction.probability, parameters.split_levels, parameters.split_min_size)
    mask = plug_tunnels(mask, parameters.tunnel_radius)
    mask = fill_cavities(mask, parameters.hole_size)
    mask &= prediction.probability > 0
    mask = clear_border(mask, parameters.border)
    mask = remove_dust(mask, parameters.dust_min_size)
    return mask.view(np.uint8)


def mask_of(prediction: Prediction, rule: MaskRule, profile: VolumeProfile | None = None) -> np.ndarray:
    """The mask that a rule gives; ``profile`` saves measuring the volume again."""
    return make_mask(prediction, rule.at(profile or VolumeProfile.of(prediction)))
