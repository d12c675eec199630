"""Samples as a run has them: features of generated scrolls, which resemble one another as those of real ones do."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nx46vx.bench.lanes import VIEW
from nx46vx.data.synthetic import make_case
from nx46vx.features.blocks import sample_features
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.features.sampling import case_seed, sample_balanced, sample_natural, spatial_blocks
from nx46vx.features.spread import usable_cpus
from nx46vx.model.calibration import RandomSamples
from nx46vx.model.neuron import NeuronSpec, prepare_neuron
from nx46vx.model.samples import FitData
from nx46vx.model.views import draw_views, relevance_gram

#: Edge of a generated volume, and samples drawn from it.
EDGE, PER_CASE = 96, 40_000


def scroll_data(samples: int, validation: int) -> FitData:
    """About so many training samples (both classes alike) and validation samples (as they come), of other scrolls."""
    train = math.ceil(samples / PER_CASE)
    limits = [min(PER_CASE, samples - number * PER_CASE) for number in range(train)]
    with ThreadPoolExecutor(usable_cpus()) as threads:
        *cases, held_out = threads.map(scroll_case, range(train + 1), [*limits, validation], [True] * train + [False])
    return FitData(feature_names(), cases, [held_out])


def drawn_neurons(data: FitData, neurons: int) -> list[NeuronSpec]:
    """Meta-neurons whose views are drawn as a run draws them."""
    views = draw_views(relevance_gram(data), data.pool, seed=0, width=VIEW, meta_neurons=range(neurons))
    return [prepare_neuron(data, 0, k, view) for k, view in views.items()]


def scroll_case(number: int, limit: int, balanced: bool, edge: int = EDGE) -> RandomSamples:
    """Samples of generated scroll ``number``: both classes alike (``balanced``), or as they come."""
    volume, label = make_case((edge, edge, edge), scroll=number, seed=number)
    draw = sample_balanced if balanced else sample_natural
    index = draw(label, limit, case_seed(0, f"scroll-{number}", draw.__name__))
    group = spatial_blocks(index, (edge, edge, edge))
    order = np.lexsort((index, group))  # as the feature cache keeps them
    index, group = index[order], group[order]
    features = sample_features(volume, measure_reference(volume), feature_names(), index, block=edge)
    y = (label.reshape(-1)[index] == 1).astype(np.uint8)
    counts = (int((label == 0).sum()), int((label == 1).sum()))
    return RandomSamples(f"scroll-{number}", features, y, group, index, counts)
