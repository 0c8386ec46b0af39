"""The parts of a step under the roof of the machine: `python -m benchmarks.roofline [MEASURED.json [PICTURE.svg]]`.

Reads what `make bench BENCH=training` wrote, or `make bench-gpu`. Both axes are logarithmic: operations a second over
operations a byte. A part lies below the slope where memory bounds it, below the level where arithmetic does.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from simzss.errors import InputError, run_program

MEASURED = Path("outputs/bench_training.json")
PICTURE = Path("outputs/roofline.svg")
_COLOURS = {"cached": "#1f5fa8", "uncached": "#b3541e"}
_INK, _PALE = "#222222", "#888888"
# Where a label may stand, in points from its mark and by which of its sides; the first that is free is taken.
_AROUND = ((8, 0), (-8, 0), (6, 8), (6, -8), (-6, 8), (-6, -8), (0, 11), (0, -11))
_PLACES = [
    (dx * far, dy * far, "left" if dx > 0 else "right" if dx < 0 else "center")
    for far in (1.0, 1.8, 2.8, 4.0)
    for dx, dy in _AROUND
]


def draw(measured: dict[str, Any], path: Path) -> list[str]:
    """Draw the parts that do arithmetic; returns the names of the others.

    Args:
        measured: `machine`, `peaks` and `parts`, as the benchmark wrote them.
        path: of the picture; its suffix says the format.

    Raises:
        InputError: no part does any arithmetic.
    """
    parts = [part for part in measured["parts"] if part["flops"] and part["seconds"]]
    others = [f"{part['step']} {part['name']}" for part in measured["parts"] if part not in parts]
    if not parts:
        raise InputError("no part with arithmetic in it: nothing to draw")
    peaks = measured["peaks"]
    intensity = [part["flops"] / part["bytes"] for part in parts]
    reached = [part["flops"] / part["seconds"] for part in parts]
    ridge = peaks["towers"] / peaks["bandwidth"]
    left = min(*intensity, ridge) / 3
    right = max(*intensity, ridge) * 6

    matplotlib.rcParams["svg.hashsalt"] = "roofline"  # equal measurements give equal files
    figure = Figure(figsize=(8.4, 5.4), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    axes.set_xlim(left, right)
    axes.set_ylim(min(reached) / 3, peaks["towers"] * 3)
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("operations a second")
    axes.set_title(f"A step of training by part\n{measured['machine']}", fontsize=9, color=_INK)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)

    across = np.geomspace(left, right, 400)
    roofs = {"towers": ("-", "products of the towers"), "full": ("--", "products of float32")}
    taken: list[Any] = []
    for key, (style, text) in roofs.items():
        axes.plot(across, np.minimum(peaks[key], across * peaks["bandwidth"]), style, color=_INK, linewidth=1.2)
        label = f"{text}: {peaks[key] / 1e12:.3g} TFLOP/s"
        taken.append(_text(axes, (right, peaks[key]), label, (-2, 4), "right", _INK))
    middle = (left * ridge) ** 0.5
    label = f"memory: {peaks['bandwidth'] / 1e9:.3g} GB/s"
    taken.append(_text(axes, (middle, middle * peaks["bandwidth"]), label, (-6, 8), "right", _INK))

    for part, x, y in zip(parts, intensity, reached, strict=True):
        mark = "s" if part["full"] else "o"
        axes.plot([x], [y], mark, color=_COLOURS.get(part["step"], _PALE), markersize=6)
    figure.draw_without_rendering()  # so that texts have a size
    lines = [(x, min(peaks[key], x * peaks["bandwidth"])) for key in roofs for x in across]
    boxes = [_box(text) for text in taken]
    for places, half in ((zip(intensity, reached, strict=True), 6), (lines, 2)):
        for x, y in map(axes.transData.transform, places):
            boxes.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    for number in np.argsort(reached)[::-1]:
        part = parts[number]
        label = f"{part['step']}: {part['name']}"
        boxes.append(
            _label(axes, (intensity[number], reached[number]), label, _COLOURS.get(part["step"], _PALE), boxes)
        )
    if others:
        figure.supxlabel(f"without arithmetic: {', '.join(others)}", fontsize=8, color=_PALE)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)
    return others


def _text(axes: Any, at: tuple[float, float], text: str, shift: tuple[float, float], side: str, colour: str) -> Any:
    return axes.annotate(
        text, at, xytext=shift, textcoords="offset points", ha=side, va="center", fontsize=8, color=colour
    )


def _label(axes: Any, at: tuple[float, float], text: str, colour: str, boxes: Sequence[Bbox]) -> Bbox:
    """Write beside a mark where nothing else is; returns the place."""
    frame = axes.get_window_extent()
    for dx, dy, side in _PLACES:
        written = _text(axes, at, text, (dx, dy), side, colour)
        box = _box(written)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in boxes):
            return box
        written.remove()
    return _box(_text(axes, at, text, (8, 0), "left", colour))  # there is no room: better there than not at all


def _box(text: Any) -> Bbox:
    return text.get_window_extent().padded(1)


def main() -> None:
    """Draw what was measured."""
    arguments = [Path(argument) for argument in sys.argv[1:]]
    source, picture = (arguments + [MEASURED, PICTURE][len(arguments) :])[:2]
    try:
        measured = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read: make bench BENCH=training writes it ({error})") from error
    others = draw(measured, picture)
    print(picture, f"(without arithmetic, not drawn: {', '.join(others)})" if others else "")


if __name__ == "__main__":
    run_program(main)
