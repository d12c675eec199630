"""The command line. stdout is data, stderr is talk, the exit code says how it ended."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from nx46vx import __version__
from nx46vx.cli import cache, inspect, score
from nx46vx.cli.bench import bench
from nx46vx.errors import UsageError
from nx46vx.runtime.lock import at_rest
from nx46vx.settings import Settings, SyntheticSettings, load_settings, parse_scalar

app = typer.Typer(
    name="nx46vx", help="Find papyrus surfaces in CT volumes by a grid of sparse quadratic neurons.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML configuration; see configs/.")]
Data = Annotated[Path | None, typer.Option("--data", help="Dataset in the competition's layout.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run directory; runs/<name of the config> if left out.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value over the configuration, e.g. seed=1.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Refuse a directory that exists.")]
From = Annotated[Path | None, typer.Option(
    "--resume-from-checkpoint", metavar="PATH",
    help="Continue the run in this run directory, or a copy or zip of one, brought to --out.",
)]  # fmt: skip


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    config: Config = None, data: Data = None, out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Accepted; an unfinished run always continues.")] = False,
    fresh: Fresh = False, resume_from_checkpoint: From = None,
    retrain: Annotated[
        bool, typer.Option("--retrain-mismatched", help="If the run was made otherwise: retrain what does not fit.")
    ] = False,
    set_: Set = None, json: Json = False,
    budget: Annotated[str | None, typer.Option("--budget", help="Time for this session: 9h, 45m, 90s.")] = None,
    session_start: Annotated[
        str | None, typer.Option("--session-start", help="When it began: ISO time, unix time, auto or process.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", metavar="HOST:PORT", help="Run on this Ray cluster; auto finds it.")
    ] = None,
) -> None:  # fmt: skip
    """Start a run, continue an unfinished one, or print a finished one's result."""
    set_ = [*(set_ or []), *_budget(budget, session_start)]
    if ray_address is not None:
        set_.append(f"resources.ray_address={orjson.dumps(ray_address).decode()}")
    if (resume or resume_from_checkpoint is not None) and fresh:
        raise UsageError("--resume and --fresh exclude each other", fix="leave one out")
    if resume_from_checkpoint is not None:
        from nx46vx.pipeline.elsewhere import take_up

        root, settings = take_up(resume_from_checkpoint, out, config, _overrides(data, set_), retrain=retrain)
    else:
        settings, root = _settle(config, data, out, set_)
    with at_rest(root):  # a held directory is refused at once, before the slow imports
        pass
    from nx46vx.pipeline.run import run as run_job

    report = run_job(settings, root, fresh=fresh, retrain=retrain)
    result = {
        "run": str(root), "submission": str(root / report["submission"]["file"]), "report": str(root / "report.md"),
        "reduced": report["reduced"],
    }  # fmt: skip
    _print(result, json)


@app.command()
def plan(
    config: Config = None, data: Data = None, out: Out = None, fresh: Fresh = False, set_: Set = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Check the data, split it, count cache hits and estimate the time; write plan.json and train nothing."""
    settings, root = _settle(config, data, out, set_)
    from nx46vx.pipeline.planning import plan as plan_job

    _print(plan_job(settings, root, fresh=fresh), json)


@app.command()
def status(run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")], json: Json = False) -> None:
    """Say how far a run is; touches nothing."""
    from nx46vx.pipeline.status import status as status_of

    _print(status_of(run_dir), json)


@app.command("make-data")
def make_data(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Where the dataset goes.")],
    train: Annotated[int, typer.Option(help="Labelled volumes.")] = 8,
    test: Annotated[int, typer.Option(help="Test volumes.")] = 2,
    size: Annotated[int, typer.Option(help="Edge of the cubic volumes, 48 to 320 voxels.")] = 64,
    scrolls: Annotated[int, typer.Option(help="Different scrolls they come from.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    json: Json = False,
) -> None:
    """Make a synthetic dataset in the competition's layout."""
    from pydantic import ValidationError

    from nx46vx.data.synthetic import make_dataset
    from nx46vx.runtime.sink import NullSink

    try:
        settings = SyntheticSettings(train_cases=train, test_cases=test, size=size, scrolls=scrolls, seed=seed)
    except ValidationError as error:
        found = "; ".join(f"{item['loc'][0]}: {item['msg']} (found {item['input']!r})" for item in error.errors())
        raise UsageError("the dataset cannot be made so", found=found, fix="choose values in range") from None
    make_dataset(out, settings, sink=NullSink())
    _print({"data": str(out), "train_cases": train, "test_cases": test}, json)


app.command()(score.score)
app.command()(inspect.verify)
app.command()(inspect.events)
checkpoint = typer.Typer(help="Checkpoints of a run.", no_args_is_help=True, rich_markup_mode=None)
checkpoint.command("export")(inspect.export)
app.add_typer(checkpoint, name="checkpoint")
app.add_typer(bench, name="bench")
app.add_typer(cache.app, name="cache")


def _settle(config: Path | None, data: Path | None, out: Path | None, pairs: list[str] | None) -> tuple[Settings, Path]:
    settings = load_settings(config, overrides=_overrides(data, pairs))
    if out is None:
        out = Path("runs") / (config.stem if config is not None else "default")
    return settings, out


def _budget(budget: str | None, session_start: str | None) -> list[str]:
    """The two time flags as overrides."""
    from datetime import datetime

    from nx46vx.runtime.budget import parse_duration

    pairs = []
    if budget is not None:
        pairs.append(f"budget.hours={parse_duration(budget) / 3600!r}")
    if session_start is not None:
        with contextlib.suppress(ValueError):  # else a unix time or a word: the configuration checks it
            session_start = repr(datetime.fromisoformat(session_start).astimezone().timestamp())
        pairs.append(f"budget.session_start={session_start}")
    return pairs


def _overrides(data: Path | None, pairs: list[str] | None) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError("--set wants key=value", found=pair, fix="for instance --set seed=1")
        overrides[key.strip()] = parse_scalar(value, f"--set {key}")
    if data is not None:
        overrides["data.dir"] = str(data.resolve())
    return overrides


def _print(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
        return
    for key, item in value.items():
        typer.echo(f"{key}: {item if not isinstance(item, dict | list) else orjson.dumps(item).decode()}")
