"""A bar chart as SVG, written by hand: the same values give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_ROW, _LABEL, _WIDTH = 22, 170, 620


def bars_svg(title: str, values: Mapping[str, float]) -> str:
    """Horizontal bars, the largest first; the names in the order of the alphabet among equals."""
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    most = max((value for _, value in ordered), default=0.0) or 1.0
    height = 40 + _ROW * max(len(ordered), 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    if not ordered:
        lines.append('<text x="10" y="48">too few trials to tell</text>')
    for row, (name, value) in enumerate(ordered):
        y = 36 + _ROW * row
        length = (_WIDTH - _LABEL - 70) * value / most
        lines += [
            f'<text x="{_LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{length:.1f}" height="16" fill="#4477aa"/>',
            f'<text x="{_LABEL + length + 6:.1f}" y="{y + 13}">{value:.3f}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
