"""Mapped samples beyond a bound leave memory after each pass, and the sums keep their bits."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_samples import make_data, make_specs

from nx46vx.features.npy import map_array, read_layout
from nx46vx.model.candidates import TILE
from nx46vx.model.kernel_passes import KernelPasses
from nx46vx.model.neuron import bootstrap
from nx46vx.model.samples import FitData

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/smaps tells what is mapped")


@pytest.fixture
def data(tmp_path: Path) -> FitData:
    """Five cases whose features are mapped from files."""
    made = make_data((3000,) * 5, 8, chunk=1000, validation=500, intercept=-0.7)
    mapped = []
    for number, case in enumerate(made.train):
        file = tmp_path / f"case-{number}.npy"
        np.save(file, np.ascontiguousarray(case.features))
        mapped.append(replace(case, features=map_array(file, read_layout(file)[0])))
    return replace(made, train=mapped)


def resident(folder: Path) -> dict[str, int]:
    """Resident KiB of each file of a folder that is mapped."""
    found: dict[str, int] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            name = Path(line.rsplit(" ", 1)[-1]).name if str(folder) in line else ""
        elif name and line.startswith("Rss:"):
            found[name] = found.get(name, 0) + int(line.split()[1])
    return found


@linux
@pytest.mark.parametrize("threads", [1, 2])
def test_cases_beyond_the_bound_are_let_go_after_each_pass(data: FitData, tmp_path: Path, threads: int) -> None:
    size = data.train[0].features.nbytes
    specs = make_specs(data, neurons=2, width=6)
    thetas = {k: np.random.default_rng(k).standard_normal((specs[k].columns, TILE)) * 0.4 for k in (0, 1)}
    sums = []
    for bound in (1 << 40, 2 * size):
        passes = KernelPasses(data, threads=threads, resident_bytes=bound)
        for spec in specs:
            passes.add(spec, bootstrap(data, 0, spec.meta_neuron))
        sums.append([passes.gradients(thetas) for _ in range(3)])
        left = resident(tmp_path)
        passes.close()
        names = sorted(left)
        assert len(names) == 5 and all(left[name] > 0 for name in names[:2])
        assert all((left[name] > 0) == (bound > 2 * size) for name in names[2:])
    for whole, bounded in zip(*sums, strict=True):
        for k in (0, 1):
            assert all(np.array_equal(one, other) for one, other in zip(whole[k], bounded[k], strict=True))
