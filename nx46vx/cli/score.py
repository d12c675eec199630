"""The command that scores masks against labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer


def score(
    prediction: Annotated[Path, typer.Argument(metavar="PRED", help="Mask, or folder of masks.")],
    label: Annotated[Path, typer.Argument(metavar="LABEL", help="Label, or folder of labels with the same names.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score masks as the competition does: 0.30 TopoScore + 0.35 SurfaceDice@2 + 0.35 VOI score, mean over volumes."""
    from nx46vx.inference.scoring import score_files

    told = score_files(prediction, label).to_json()
    if json:
        typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        return
    cases = told.pop("cases")
    for name, fields in cases.items():
        typer.echo(f"{name}: {_line(fields)}")
    typer.echo(f"mean of {len(cases)}: {_line(told)}")


def _line(fields: dict[str, Any]) -> str:
    parts = [f"{part} {fields[part]:.6f}" for part in ("score", "topo", "surface_dice", "voi")]
    return ", ".join([*parts, f"counts {orjson.dumps(fields['counts']).decode()}"])
