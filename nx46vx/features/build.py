"""Computes the samples of one case and puts them into the cache; this is what executors run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nx46vx.errors import DataError
from nx46vx.features.blocks import sample_features
from nx46vx.features.entry import Store, entry_path, entry_problem, write_entry
from nx46vx.features.lock import held
from nx46vx.features.pool import feature_names
from nx46vx.features.reading import Reader, read_case
from nx46vx.features.reference import measure_reference
from nx46vx.features.request import SampleRequest
from nx46vx.features.sampling import case_seed, labelled_counts, sample_balanced, sample_natural, spatial_blocks
from nx46vx.runtime.io_clock import IoClock, Span

#: ``sample_features``, or what gives the same bits in another way.
Sampling = Callable[..., np.ndarray]


def build_case(
    root: Path, request: SampleRequest, *, threads: int = 1, read: Reader = read_case, store: Store = "npy",
    sampling: Sampling = sample_features, io: IoClock | None = None,
) -> list[Span]:  # fmt: skip
    """Make the entry of a request unless it is there by now; in another process than the one that ``io`` is of, return
    what was read and written.

    Whoever comes while another process builds the same entry waits for it and builds nothing. ``threads`` share the
    computation; ``read`` gives the volumes; ``store`` says how the features are kept; ``sampling`` computes them;
    ``io`` counts the writing.

    Raises:
        DataError: the volumes cannot be read, or hold nothing to draw samples from.
        EnvironmentFault: the cache cannot be written to.
    """
    path, io = entry_path(root, request.key), io or IoClock()
    with held(root / "locks" / f"{request.key}.lock"):
        if entry_problem(path) is not None:
            arrays, counts = draw_samples(request, threads=threads, read=read, sampling=sampling)
            with io.counting("write_features"):
                write_entry(path, arrays, case_id=request.case.case_id, counts=counts, facts=request.facts, store=store)
    return io.told()


def draw_samples(
    request: SampleRequest, *, threads: int = 1, read: Reader = read_case, sampling: Sampling = sample_features
) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    """The arrays of a request's entry, ordered by (group, index), and the volume's labelled counts."""
    case = request.case
    label, image = read(request)
    counts = labelled_counts(label)
    seed = case_seed(request.seed, case.case_id, request.kind)
    draw = sample_balanced if request.kind == "balanced" else sample_natural
    index = draw(label, request.limit, seed)
    if len(index) == 0:
        raise DataError(
            "the case has no voxels to draw samples from",
            where=f"case {case.case_id}, {case.label}",
            found=f"{counts[0]} voxels labelled 0, {counts[1]} labelled 1, samples: {request.kind}",
            fix=f"leave it out: data.skip_cases: [{case.case_id}]",
        )
    group = spatial_blocks(index, case.shape)
    order = np.lexsort((index, group))
    index, group = index[order], group[order]
    y = label.ravel()[index]
    del label
    reference = measure_reference(image, threads=threads)
    features = sampling(image, reference, feature_names(), index, block=request.block, threads=threads)
    return {"features": features, "y": y, "index": index, "group": group}, counts
