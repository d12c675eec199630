"""``nx46vx plan``: what a run would do and how long it would take, without training anything."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.data.splits import Split
from nx46vx.data.volume_io import read_volume
from nx46vx.features.blocks import iter_blocks
from nx46vx.features.cache import FeatureCache
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.features.request import SampleRequest
from nx46vx.model.calibration import seconds_per_cell
from nx46vx.model.candidates import TILE
from nx46vx.paths import RunPaths, cache_root
from nx46vx.pipeline.building import workers
from nx46vx.pipeline.dataset import Cases, find_cases, sample_requests
from nx46vx.pipeline.planfile import read_plan, write_plan
from nx46vx.pipeline.planshape import fit_of, load_plan
from nx46vx.pipeline.session import Session, open_session
from nx46vx.pipeline.standing import check_directory, check_same_data
from nx46vx.runtime.sink import NullSink
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings
from search.resources import Resources, plan_resources

#: Seconds that Ray and Tune need besides the fit, measured for 135 trials on two cores.
TUNE_SECONDS = 15.0
#: Edge of the block of voxels whose features are timed.
CROP = 64


def plan(settings: Settings, root: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Discover, check and split; count cache hits; time a short calibration; write ``plan.json``."""
    check_directory(root, settings, fresh=fresh)
    planned = load_plan(RunPaths(root).plan)
    if fit_of(planned, RunPaths(root).plan) is not None:  # what was planned stands, and nothing is written
        check_same_data(root, settings)
        by_id = {pair["case_id"]: Case.from_json(pair) for pair in planned["train_pairs"]}
        wanted = sample_requests(settings, by_id, Split.from_json(planned["split"]))
        cached = FeatureCache(cache_root(settings.features.cache_dir), sink=NullSink())
        hits = sum(cached.has(request.key) for request in wanted)
        return _summary(settings, root, RunPaths(root), planned, hits=(hits, len(wanted) - hits))
    stop = StopFlag()
    with stop.on_signals(), open_session(root, settings, stop, fresh=fresh) as session:
        resources = plan_resources(settings.resources)
        with ThreadPoolExecutor(workers(settings)) as mapper:
            cases = find_cases(session, mapper)
        requests = cases.requests(session)
        cache = FeatureCache(session.cache_dir, sink=session.log)
        hits = sum(cache.has(request.key) for request in requests)
        estimate = _estimate(session, cases, requests, len(requests) - hits, resources)
        write_plan(session, cases, None, {"estimate": estimate})
        written = read_plan(session)
        session.log.emit("PLAN", cache_hits=hits, cache_misses=len(requests) - hits, estimate=estimate)
        return _summary(settings, root, session.paths, written, hits=(hits, len(requests) - hits))


def _summary(
    settings: Settings, root: Path, paths: RunPaths, plan: dict[str, Any], *, hits: tuple[int, int]
) -> dict[str, Any]:
    """What the plan says, in short, with cache hits and misses."""
    return {
        "run": str(root),
        "plan": str(paths.plan),
        "reduced": settings.reduced,
        "cases": {role: len(plan["split"][role]) for role in ("train", "validation", "holdout")}
        | {"test": len(plan["test"])},
        "skipped": plan["skipped"],
        "candidates": len(plan["candidates"]),
        "iterations": len(plan["candidates"]) * settings.iterations,
        "cache_hits": hits[0],
        "cache_misses": hits[1],
        "frozen": bool(plan["fit"]),
        "estimate": plan["estimate"],
    }


def _estimate(
    session: Session, cases: Cases, requests: list[SampleRequest], misses: int, resources: Resources
) -> dict[str, float]:
    """Seconds per phase, from timing one small block of features and a few passes over random samples."""
    settings = session.settings
    request = requests[0]
    volume = read_volume(request.case.image, case_id=request.case.case_id)
    started = time.perf_counter()
    reference = measure_reference(volume)
    reference_seconds = time.perf_counter() - started
    crop = np.asarray(volume[:CROP, :CROP, :CROP])
    for _ in range(2):  # the first time compiles
        started = time.perf_counter()
        for _ in iter_blocks(crop, reference, feature_names(), block=CROP):
            pass
        per_voxel = (time.perf_counter() - started) / crop.size
    voxels_per_case = float(np.mean([np.prod(request.case.shape) for request in requests]))
    per_case = reference_seconds + per_voxel * voxels_per_case
    cell = seconds_per_cell(
        settings.grid.features_per_neuron, device=resources.device.name, threads=resources.engine_threads
    )
    samples = sum(min(r.limit, sum((r.case.counts or (0, 0, 0))[:2])) for r in requests if r.role == "train")
    lanes = settings.grid.meta_neurons * TILE
    voxels = sum(int(np.prod(case.shape)) for case in cases.dataset.test)
    features = misses * per_case / workers(settings)
    fit = cell * samples * lanes * settings.iterations * 1.2  # the evaluations take the rest
    overhead = TUNE_SECONDS if settings.resources.executor == "ray" else 0.0
    segment = voxels * per_voxel
    return {
        "features_seconds": features, "train_seconds": fit + overhead, "segment_seconds": segment,
        "total_seconds": features + fit + overhead + segment,
    }  # fmt: skip
