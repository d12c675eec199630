"""Commands about the feature cache: what is in it, and its samples as a table. None of them changes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from nx46vx.errors import UsageError
from nx46vx.paths import cache_root

if TYPE_CHECKING:
    from nx46vx.features.cache import FeatureCache

app = typer.Typer(help="The feature cache.", no_args_is_help=True, rich_markup_mode=None)

Where = Annotated[Path | None, typer.Option("--cache", help="Cache folder; the user's own if left out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(cache: Where = None, json: Json = False) -> None:
    """Print what is in the cache: case, draw, samples, version, bytes, key."""
    opened = _open(cache)
    found = [_told(opened, key) for key in opened.entry_keys()]
    if json:
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    for entry in found:
        if entry["problem"] is not None:
            typer.echo(f"damaged: {entry['key'][:16]}: {entry['problem']}")
            continue
        typer.echo(
            f"{entry['case_id']}: {entry['samples']} samples, {entry['kind']}, seed {entry['seed']}, "
            f"pool version {entry['pool_version']}, {entry['bytes']} bytes, {entry['key'][:16]}"
        )
    typer.echo(f"{len(found)} entries, {sum(entry['bytes'] or 0 for entry in found)} bytes in {opened.root}")


@app.command()
def export(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The Parquet file.")],
    cache: Where = None,
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case; may be given again.")] = None,
    key: Annotated[list[str] | None, typer.Option("--key", help="Only this entry (the key's beginning).")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Only what this run was fitted and validated on.")] = None,
    json: Json = False,
) -> None:
    """Write cached samples as one Parquet table: features, gradients, labels, voxel indices."""
    from nx46vx.features.export import export_parquet
    from nx46vx.model.fitplan import load_fit_plan

    opened = _open(cache)
    keys = opened.entry_keys()
    if run is not None:
        plan = load_fit_plan(run)
        keys = [*plan.train_keys, *plan.validation_keys]
    if key:
        keys = [one for one in keys if any(one.startswith(start) for start in key)]
    if case:
        keys = [one for one in keys if opened.facts(one)["case_id"] in case]
    if not keys:
        raise UsageError("no cache entry fits", where=opened.root, fix="look at nx46vx cache list")
    rows = export_parquet(opened, keys, target)
    told = {"file": str(target), "cases": len(keys), "rows": rows, "bytes": target.stat().st_size}
    if json:
        typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    else:
        typer.echo("\n".join(f"{name}: {value}" for name, value in told.items()))


def _open(folder: Path | None) -> FeatureCache:
    from nx46vx.features.cache import FeatureCache
    from nx46vx.runtime.sink import NullSink

    return FeatureCache(cache_root(folder), sink=NullSink())


def _told(cache: FeatureCache, key: str) -> dict[str, Any]:
    """One entry in a few words."""
    told: dict[str, Any] = {"key": key, "problem": cache.problem(key), "bytes": None}
    if told["problem"] is not None:
        return told
    facts, samples = cache.facts(key), cache.open(key)
    size = sum(file.stat().st_size for file in cache.path(key).rglob("*") if file.is_file())
    about = {name: facts[name] for name in ("case_id", "kind", "seed", "limit", "pool_version")}
    return told | about | {"samples": int(samples.y.size), "positives": int((samples.y == 1).sum()), "bytes": size}
