"""Roofline of the parts of a step: `python -m benchmarks.roofline [MEASURED.json [PICTURE.svg]]`.

Reads what `make bench BENCH=training` wrote, or `make bench-gpu`. Both axes are logarithmic: operations a second over
operations a byte. A part lies below the slope where memory bounds it, below the level where arithmetic does.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simzss.errors import DataError
from simzss.program import run_program

MEASURED = Path("outputs/bench_training.json")
PICTURE = Path("outputs/roofline.svg")
_COLOURS = {"cached": "#1f5fa8", "uncached": "#b3541e"}
_MARKS = {"vision": "o", "text": "s", "loss": "^", "optimiser": "D"}


def draw(measured: dict[str, Any], path: Path) -> list[str]:
    """Draw the parts that do arithmetic; return the names of the others.

    Args:
        measured: `machine`, `peaks` and `parts`, as the benchmark wrote them.
        path: of the picture; its suffix says the format.

    Raises:
        DataError: no part does any arithmetic.
    """
    parts = [part for part in measured["parts"] if part["flops"] and part["seconds"]]
    others = [f"{part['step']} {part['name']}" for part in measured["parts"] if part not in parts]
    if not parts:
        raise DataError("no part with arithmetic in it: nothing to draw")
    matplotlib.rcParams["svg.hashsalt"] = "roofline"  # equal measurements give equal files
    figure = Figure(figsize=(8.4, 5.4), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.set_title(f"A step of training by part\n{measured['machine']}", fontsize=9)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    intensity = [part["flops"] / part["bytes"] for part in parts]
    _draw_roofs(axes, measured["peaks"], min(intensity), max(intensity))
    for part, x in zip(parts, intensity, strict=True):
        colour, mark = _COLOURS.get(part["step"], "#888888"), _MARKS.get(part["name"], "v")
        label = f"{part['step']}: {part['name']}"
        axes.plot([x], [part["flops"] / part["seconds"]], mark, color=colour, markersize=6, label=label)
    axes.legend(loc="lower right", fontsize=8)
    if others:
        figure.supxlabel(f"without arithmetic: {', '.join(others)}", fontsize=8, color="#888888")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)
    return others


def _draw_roofs(axes: Axes, peaks: dict[str, float], low: float, high: float) -> None:
    """Draw the roofs of both kinds of products over intensities that hold `low` to `high`."""
    ridge = peaks["towers"] / peaks["bandwidth"]
    x = np.geomspace(min(low, ridge) / 3, max(high, ridge) * 6, 400)
    memory = f"memory: {peaks['bandwidth'] / 1e9:.3g} GB/s"
    for key, style, name in (("towers", "-", "products of the towers"), ("full", "--", "products of float32")):
        label = f"{name}: {peaks[key] / 1e12:.3g} TFLOP/s; {memory}"
        axes.plot(x, np.minimum(peaks[key], x * peaks["bandwidth"]), style, color="#222222", linewidth=1.2, label=label)


def main() -> None:
    """Draw what was measured."""
    arguments = [Path(argument) for argument in sys.argv[1:]]
    source, picture = (arguments + [MEASURED, PICTURE][len(arguments) :])[:2]
    try:
        measured = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{source} cannot be read: make bench BENCH=training writes it ({error})") from error
    others = draw(measured, picture)
    print(picture, f"(without arithmetic, not drawn: {', '.join(others)})" if others else "")


if __name__ == "__main__":
    run_program(main)
