"""The S-curve of MinHash with bands: how likely a pair of documents is to be found, by how alike they are."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from lmlab.errors import Refused

POINTS = 101


def meets(similarity: float, bands: int, rows: int) -> float:
    """Probability that a pair of this Jaccard similarity shares a band: 1 - (1 - s^rows)^bands."""
    return -math.expm1(bands * math.log1p(-(similarity**rows))) if similarity < 1 else 1.0


def verified(similarity: float, hashes: int, threshold: float) -> float:
    """Probability that at least `threshold` of the hashes agree: the upper tail of a binomial distribution."""
    least = math.ceil(threshold * hashes - 1e-9)
    if least <= 0 or similarity >= 1:
        return 1.0
    if similarity <= 0:
        return 0.0
    p, q = math.log(similarity), math.log1p(-similarity)
    total = math.lgamma(hashes + 1)
    tail = (
        math.exp(total - math.lgamma(k + 1) - math.lgamma(hashes - k + 1) + k * p + (hashes - k) * q)
        for k in range(least, hashes + 1)
    )
    return min(1.0, sum(tail))


def curve(bands: int, rows: int, hashes: int | None = None, threshold: float = 0.0) -> dict[str, Any]:
    """The curve at POINTS similarities from 0 to 1: `meets`, in a band; `joined`, and verified too (taken as
    independent, though a pair that met has agreed on a band's hashes already: so `joined` is a little too low)."""
    hashes = hashes or bands * rows
    similarities = [i / (POINTS - 1) for i in range(POINTS)]
    found = [meets(s, bands, rows) for s in similarities]
    return {
        "bands": bands,
        "rows": rows,
        "permutations": hashes,
        "threshold": threshold,
        "middle": (1 / bands) ** (1 / rows),
        "similarity": similarities,
        "meets": found,
        "joined": [m * verified(s, hashes, threshold) for s, m in zip(similarities, found, strict=True)],
    }


@cache
def best(hashes: int, threshold: float, weight: float = 0.5, steps: int = 200) -> tuple[int, int]:
    """(bands, rows) within so many hashes whose curve errs least about a threshold: `weight` times the area above it
    left of the threshold (pairs found in vain) plus 1 - `weight` times the area missing right of it (pairs missed);
    the rule of datasketch, whose answers for 256 hashes at 0.7 and 128 at 0.85 are 25 x 10 and 8 x 16."""

    def area(low: float, high: float, bands: int, rows: int) -> float:
        width = (high - low) / steps
        return width * sum(meets(low + (i + 0.5) * width, bands, rows) for i in range(steps))

    def error(bands: int, rows: int) -> float:
        found = area(0.0, threshold, bands, rows)
        return weight * found + (1 - weight) * (1 - threshold - area(threshold, 1.0, bands, rows))

    shapes = [(b, r) for b in range(1, hashes + 1) for r in range(1, hashes // b + 1)]
    return min(shapes, key=lambda shape: error(*shape))


def asked(bands: int | None, rows: int | None, permutations: int | None, threshold: float) -> dict[str, Any]:
    """The curve of what a user asked for: with `permutations` alone, of the best bands and rows for the threshold."""
    if permutations and bands is None and rows is None:
        bands, rows = best(permutations, threshold)
    bands, rows = bands or 16, rows or 8
    if permutations and bands * rows > permutations:
        raise Refused(f"permutations {permutations} is less than bands x rows ({bands} x {rows} = {bands * rows})")
    return curve(bands, rows, permutations, threshold)


def drawn(found: dict[str, Any], width: int = 480, height: int = 300) -> str:
    """The curve as an SVG image that stands by itself."""
    left, top, right, bottom = 48, 14, width - 12, height - 40

    def at(x: float, y: float) -> str:
        return f"{left + x * (right - left):.1f},{bottom - y * (bottom - top):.1f}"

    def line(name: str, style: str) -> str:
        points = " ".join(at(s, p) for s, p in zip(found["similarity"], found[name], strict=True))
        return f'<polyline points="{points}" fill="none" {style}/>'

    ticks = []
    for i in range(6):
        v = i / 5
        (x, y), (low, _) = at(v, 0).split(","), at(0, v).split(",")
        level = at(0, v).split(",")[1]
        ticks.append(f'<text x="{x}" y="{float(y) + 16:.1f}" text-anchor="middle">{v:.1f}</text>')
        ticks.append(f'<text x="{float(low) - 6:.1f}" y="{float(level) + 4:.1f}" text-anchor="end">{v:.1f}</text>')
        ticks.append(f'<path d="M{left},{level}H{right}" stroke="#ddd"/>')
    threshold = at(found["threshold"], 0).split(",")[0]
    about = f"{found['bands']} bands of {found['rows']} rows, {found['permutations']} permutations"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-size="12"'
            f' font-family="sans-serif"><title>S-curve: {about}</title>',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *ticks,
            f'<path d="M{threshold},{top}V{bottom}" stroke="#999" stroke-dasharray="4 3"/>',
            line("meets", 'stroke="#2b6cb0" stroke-width="2"'),
            line("joined", 'stroke="#c05621" stroke-width="2" stroke-dasharray="6 3"'),
            f'<text x="{left + 10}" y="{top + 14}" fill="#2b6cb0">meets in a band</text>',
            f'<text x="{left + 10}" y="{top + 30}" fill="#c05621">and is verified at {found["threshold"]:g}</text>',
            f'<text x="{(left + right) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
            f"Jaccard similarity of shingles ({about})</text>",
            "</svg>\n",
        ]
    )


def shown(found: dict[str, Any], width: int = 50) -> str:
    """The curve for a terminal, from similarity 0.3 on: `#` joined, `.` met in a band and not verified."""
    out = [
        f"{found['bands']} bands of {found['rows']} rows; middle at {found['middle']:.3f}; a pair is joined if "
        f"{found['threshold']:g} of {found['permutations']} hashes agree",
        "similarity   meets  joined",
    ]
    for i in range(30, POINTS, 5):
        s, m, j = (found[name][i] for name in ("similarity", "meets", "joined"))
        bar = "#" * round(j * width) + "." * (round(m * width) - round(j * width))
        out.append(f"{s:10.2f}  {m:6.3f}  {j:6.3f}  {bar}".rstrip())
    return "\n".join(out)
