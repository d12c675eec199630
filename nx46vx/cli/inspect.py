"""Commands that look at a run: verify it, read its events, pack it. None of them changes it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from nx46vx.errors import IntegrityError, UsageError
from nx46vx.paths import RunPaths

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: Problems that the error message names; all of them are on stdout.
SHOWN = 5


def verify(
    run: Run,
    cache: Annotated[Path | None, typer.Option("--cache", help="Feature cache to check as well.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Dataset to check as well.")] = None,
    json: Json = False,
) -> None:
    """Prove a run: chains, seals, checkpoints, and every reported number from primary records; 5 if anything fails."""
    from nx46vx.events import checking_processes
    from nx46vx.pipeline.verifying import verify as verify_run

    with checking_processes(RunPaths(run).events) as executor:
        found = verify_run(run, cache=cache, data=data, executor=executor)
    problems = [_sentence(problem) for problem in found["problems"]]
    if json:
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        for problem in problems:
            typer.echo(f"problem: {problem}")
        for name, count in found["checked"].items():
            typer.echo(f"checked: {count} {name}")
        for what in found["not_checked"]:
            typer.echo(f"not checked: {what}")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise IntegrityError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in this run", where=run,
            found="; ".join(problems[:SHOWN]) + more, fix="restore the files named above from a copy, or run it again",
        )  # fmt: skip


def _sentence(problem: dict[str, Any]) -> str:
    line = "" if problem["line"] is None else f", line {problem['line']}"
    return f"{problem['path']}{line}: {problem['what']}"


def events(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run is finished or Ctrl-C.")] = False,
    event: Annotated[str | None, typer.Option("--event", help="Only this event or substage.")] = None,
    trial: Annotated[str | None, typer.Option("--trial", help="Only this candidate or writer.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="Write a Parquet table instead.")] = None,
) -> None:
    """Print a run's events as JSON lines, or write them as a table."""
    from nx46vx.events import export_parquet, follow_events, iter_events
    from nx46vx.events.seal import RUN_SEAL

    folder = RunPaths(run).events
    if not folder.is_dir():
        raise UsageError("there is no event log", where=run, found="no folder events", fix="check the path")
    if parquet is not None:
        if follow:
            raise UsageError("--parquet and --follow exclude each other", fix="leave one out")
        rows = export_parquet(folder, parquet, event=event, trial=trial)
        typer.echo(f"{parquet}: {rows} events")
        return
    if follow:
        found = follow_events(
            folder, event=event, trial=trial, from_start=True, stop=lambda: (folder / RUN_SEAL).exists()
        )
    else:
        found = iter_events(folder, event=event, trial=trial)
    try:
        for record in found:
            sys.stdout.write(orjson.dumps(record).decode() + "\n")
            if follow:
                sys.stdout.flush()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        if not follow:
            raise


def export(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", metavar="ZIP", help="The archive; RUN.zip if left out.")] = None,
    json: Json = False,
) -> None:
    """Pack all that is needed to continue a run elsewhere into one zip."""
    from nx46vx.runtime.archive import export_run
    from nx46vx.runtime.digest import digest_file

    target = out if out is not None else run.resolve().with_name(f"{run.resolve().name}.zip")
    files = export_run(run, target)
    told = {"archive": str(target), "files": files, "bytes": target.stat().st_size, "sha512": digest_file(target)}
    if json:
        typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        for key, value in told.items():
            typer.echo(f"{key}: {value}")
