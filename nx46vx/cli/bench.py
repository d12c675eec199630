"""``nx46vx bench NAME``: measure this machine. The table is for people, ``--json`` gives one object."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from nx46vx.errors import UsageError

if TYPE_CHECKING:
    from nx46vx.bench.frame import Outcome
    from nx46vx.runtime.device import Gpu

bench = typer.Typer(help="Measure this machine.", no_args_is_help=True, rich_markup_mode=None)


class Device(StrEnum):
    """What computes."""

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


Quick = Annotated[bool, typer.Option("--quick", help="Smaller sizes, within a minute.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Computes = Annotated[
    Device, typer.Option("--device", help="cuda: a GPU, or an error where there is none; auto: one if it is there.")
]
Where = Annotated[Path | None, typer.Option("--dir", help="Write below this folder; the system's temporary one else.")]


@bench.command()
def durability(quick: Quick = False, json: Json = False, folder: Where = None) -> None:
    """Event log, verification and checkpoints: speed, ratio to the naive pattern, share of a full-size run."""
    from nx46vx.bench import durability as module

    _show(module.measure(module.QUICK if quick else module.Sizes(), folder), quick, json, folder)


@bench.command()
def engine(quick: Quick = False, json: Json = False, device: Computes = Device.CPU) -> None:
    """Cost per sample, candidate and iteration of the whole grid, against the serial pattern and against one lane; on a
    GPU seconds at full size, memory, and how near a pass comes to the memory's speed."""
    if (gpu := _gpu(device)) is not None:
        from nx46vx.bench import engine_gpu

        sizes = engine_gpu.QUICK if quick else engine_gpu.Sizes()
        _show(engine_gpu.measure(sizes, f"cuda:{gpu.index}", gpu.kind), quick, json)
        return
    from nx46vx.bench import engine as module

    _show(module.measure(module.QUICK if quick else module.Sizes()), quick, json)


@bench.command()
def peers(quick: Quick = False, json: Json = False) -> None:
    """A candidate's 120 iterations against scikit-learn's SAGA and skglm's ProxNewton, to the same objective."""
    from nx46vx.bench import peers as module

    _show(module.measure(module.QUICK if quick else module.Sizes()), quick, json)


@bench.command()
def grid(
    quick: Quick = False, json: Json = False, folder: Where = None,
    full: Annotated[bool, typer.Option("--full", help="25.2 million samples; takes minutes and 5 GB of disk.")] = False,
) -> None:  # fmt: skip
    """The whole search through Ray Tune: wall time, overhead, memory; and others' wall time for the same grid."""
    from nx46vx.bench import grid as module

    if full and quick:
        raise UsageError("--full and --quick exclude each other", fix="leave one out")
    sizes = module.FULL if full else module.QUICK if quick else module.Sizes()
    _show(module.measure(sizes, folder), quick, json, folder)


@bench.command()
def scaling(quick: Quick = False, json: Json = False, folder: Where = None) -> None:
    """How time grows with samples, lanes and iterations; a pass over a cache that is on disk only."""
    from nx46vx.bench import scaling as module

    _show(module.measure(module.QUICK if quick else module.Sizes(), folder), quick, json, folder)


@bench.command()
def features(quick: Quick = False, json: Json = False, device: Computes = Device.CPU) -> None:
    """The feature pool against SciPy filter by filter; a whole volume, a case's samples, the cache's warm start."""
    from nx46vx.bench.frame import outcome_of

    if (gpu := _gpu(device)) is not None:
        from nx46vx.bench import features_gpu

        found = features_gpu.measure(features_gpu.QUICK if quick else features_gpu.Sizes(), gpu)
        _show(outcome_of("features", found, features_gpu.BOUNDS), quick, json)
        return
    from nx46vx.bench import features as module

    _show(outcome_of("features", module.measure(quick), module.BOUNDS), quick, json)


@bench.command()
def inference(quick: Quick = False, json: Json = False) -> None:
    """The probability volume of a test case from an ensemble of nine: seconds, memory, against SciPy and NumPy."""
    from nx46vx.bench import inference as module
    from nx46vx.bench.frame import outcome_of

    _show(outcome_of("inference", module.measure(quick), module.BOUNDS), quick, json)


@bench.command()
def pool(quick: Quick = False, json: Json = False) -> None:
    """The feature pool on held-out generated scrolls: families left out and added, ensembles against boosted trees."""
    from nx46vx.bench import pool as module

    _show(module.measure(module.QUICK if quick else module.Sizes()), quick, json, own_table=module.table)


@bench.command()
def masks(quick: Quick = False, json: Json = False) -> None:
    """What each step from probability to mask adds to the competition's score of held-out generated volumes."""
    from nx46vx.bench import ablation as module

    _show(module.measure(module.QUICK if quick else module.Sizes()), quick, json, own_table=module.table)


@bench.command()
def quality(quick: Quick = False, json: Json = False) -> None:
    """The competition's score of each way to a mask, from 2D projections to fusion, on held-out generated volumes."""
    from nx46vx.bench import quality as module

    _show(module.measure(module.QUICK if quick else module.Sizes()), quick, json, own_table=module.table)


def _gpu(device: Device) -> Gpu | None:
    """The GPU to measure on, or None for the CPU."""
    if device is Device.CPU:
        return None
    from nx46vx.bench.machine import find_gpu

    return find_gpu(device.value)


def _show(
    outcome: Outcome, quick: bool, as_json: bool, folder: Path | None = None,
    own_table: Callable[[Outcome], str] | None = None,
) -> None:  # fmt: skip
    """``own_table``: what people are shown instead of the sizes and figures."""
    import tempfile

    from nx46vx.bench.frame import table
    from nx46vx.bench.machine import machine_facts

    machine = machine_facts(folder or Path(tempfile.gettempdir()))
    if as_json:
        found = {**outcome.to_json(), "quick": quick, "machine": machine}
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    typer.echo(f"{outcome.bench}{' (quick)' if quick else ''}: {machine['cpu']}, {machine['cores']} cores")
    for name, value in {**(outcome.sizes if own_table is None else {}), **machine}.items():
        typer.echo(f"{name}: {value}")
    typer.echo((own_table or table)(outcome))
