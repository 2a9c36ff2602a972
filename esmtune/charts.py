"""Figures of plotly, as plain data: what is drawn is told in words, and what is not drawn is told too.

The library draws in the browser; here nothing of it is imported. Colors go by names that a page knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from esmtune.pages import Chart, Rows, plain

COLORS = ("@blue", "@orange", "@green", "@purple", "@brown", "@teal", "@pink", "@gray")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MOST_POINTS = 3000  # drawn one by one; more are counted in cells
CELLS = 80  # to a side
LEGEND = 20  # pixels of an entry
CLEAR = "rgba(0,0,0,0)"

Numbers = Sequence[float | int | None]  # JSON does not tell 1 from 1.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart; `low` and `high` are a band or bars about it."""

    name: str
    x: Sequence[float | int | str]
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    hover: Sequence[str] | None = None
    is_dashed: bool = False
    is_marked: bool = False
    color: int | None = None  # the number of one; else each line has the next


def line_chart(
    title: str, lines: Sequence[Line], *, x: str, y: str, description: str, table: Rows | None = None, note: str = "",
    y_range: Numbers | None = None, x_range: Numbers | None = None, log_x: bool = False,
    wide: bool = True, diagonal: bool = False,
) -> Chart:  # fmt: skip
    """Lines over numbers; the `diagonal` is drawn where points on it would be right."""
    data = [_drawn(line, number) for number, line in enumerate(lines)]
    if diagonal:
        data.insert(0, _diagonal(0.0, 1.0))
    layout = _layout(x, y, legend=len(lines) > 1)
    layout["height"] += LEGEND * len(lines) if len(lines) > 2 else 0  # a line each where it is narrow
    layout["xaxis"] |= ({"range": list(x_range)} if x_range else {}) | ({"type": "log", "dtick": 1} if log_x else {})
    layout["yaxis"] |= {"range": list(y_range)} if y_range else {}
    return Chart(title, {"data": data, "layout": layout}, description, table, note, wide)


def _drawn(line: Line, number: int) -> dict[str, Any]:
    number = number if line.color is None else line.color
    color = COLORS[number % len(COLORS)]
    dash = "dot" if line.is_dashed else DASHES[number // len(COLORS) % len(DASHES)]
    drawn: dict[str, Any] = {
        "type": "scatter", "mode": "lines+markers" if line.is_marked else "lines", "name": plain(line.name, 60),
        "x": list(line.x), "y": list(line.y), "line": {"color": color, "width": 2, "dash": dash},
        "marker": {"color": color, "size": 7},
    }  # fmt: skip
    if line.hover is not None:
        drawn |= {"hovertext": list(line.hover), "hoverinfo": "text"}
    if line.low is not None and line.high is not None:
        drawn["error_y"] = _bars(line.y, line.low, line.high) | {"color": color}
    return drawn


def _bars(values: Numbers, low: Numbers, high: Numbers) -> dict[str, Any]:
    def apart(a: float | int | None, b: float | int | None) -> float | int | None:
        return None if a is None or b is None else abs(a - b)

    return {
        "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
        "array": [apart(h, v) for h, v in zip(high, values, strict=True)],
        "arrayminus": [apart(v, x) for v, x in zip(values, low, strict=True)],
    }  # fmt: skip


def bar_chart(
    title: str, names: Sequence[str], values: Numbers, *, y: str, x: str = "",
    description: str, low: Numbers | None = None, high: Numbers | None = None,
    hover: Sequence[str] | None = None, table: Rows | None = None, note: str = "", is_flat: bool = False,
    highlighted: int | None = None,
) -> Chart:  # fmt: skip
    """A bar for each name, with its interval; `is_flat` lays the bars down, for long names."""
    names = distinct(names, 24)
    colors = ["@orange" if number == highlighted else "@blue" for number in range(len(names))]
    bars: dict[str, Any] = {
        "type": "bar", "name": "", "marker": {"color": colors}, "x": names, "y": list(values),
        "hovertext": list(hover or names), "hoverinfo": "text",
    }  # fmt: skip
    if low is not None and high is not None and any(end is not None for end in low):
        bars["error_y"] = _bars(values, low, high) | {"color": "@ink"}
    layout = _layout(x, y, legend=False)
    if is_flat:
        bars |= {"orientation": "h", "x": list(values), "y": names}
        if "error_y" in bars:
            bars["error_x"] = bars.pop("error_y")
        layout = _layout(y, x, legend=False)
        layout["height"] = 110 + 34 * len(names)
    layout["yaxis" if is_flat else "xaxis"] |= {"type": "category"} | ({"autorange": "reversed"} if is_flat else {})
    return Chart(title, {"data": [bars], "layout": layout}, description, table, note)


def agreement_chart(
    title: str, measured: Float[np.ndarray, "points"], predicted: Float[np.ndarray, "points"],
    hover: Sequence[str], *, description: str, unit: str = "",
) -> Chart:  # fmt: skip
    """Predicted against measured: point by point, or counted in cells where there are too many points to tell apart."""
    low = float(min(measured.min(), predicted.min()))
    high = float(max(measured.max(), predicted.max()))
    note = ""
    if len(measured) <= MOST_POINTS:
        shown: dict[str, Any] = {
            "type": "scatter", "mode": "markers", "name": "", "x": _rounded(measured), "y": _rounded(predicted),
            "hovertext": list(hover), "hoverinfo": "text",
            "marker": {"color": "@blue", "size": 7, "opacity": 0.55, "line": {"width": 0}},
        }  # fmt: skip
    else:
        shown = density(measured, predicted)
        note = (
            f"All {len(measured):,} points are counted in {CELLS} by {CELLS} cells; above {MOST_POINTS:,}, "
            "single ones could not be told apart."
        )
    layout = _layout(f"measured{unit}", f"predicted{unit}", legend=False)
    layout["height"] = 480
    return Chart(title, {"data": [shown, _diagonal(low, high)], "layout": layout}, description, None, note, False)


def density(x: Float[np.ndarray, "points"], y: Float[np.ndarray, "points"]) -> dict[str, Any]:
    """How many points lie in each cell; empty cells are clear."""
    counts, edges_x, edges_y = np.histogram2d(x, y, bins=CELLS)
    cells = [[int(n) if n else None for n in row] for row in counts.T]
    logs = [[None if n is None else float(np.round(np.log10(n), 3)) for n in row] for row in cells]
    most = int(counts.max())
    ticks = [10**power for power in range(len(str(most)))]
    return {
        "type": "heatmap", "meta": "scaled", "x": _rounded((edges_x[1:] + edges_x[:-1]) / 2),
        "y": _rounded((edges_y[1:] + edges_y[:-1]) / 2), "z": logs, "customdata": cells,
        "colorscale": [[0, "@low"], [1, "@high"]], "zmin": 0,
        "hovertemplate": "measured %{x:.3g}, predicted %{y:.3g}: %{customdata:,} points<extra></extra>",
        "colorbar": {"title": {"text": "points"}, "thickness": 12, "tickvals": [len(str(t)) - 1 for t in ticks],
                     "ticktext": [f"{t:,}" for t in ticks]},
    }  # fmt: skip


def matrix_chart(
    title: str, counts: Int[np.ndarray, "measured predicted"], names: Sequence[str], *, description: str,
    table: Rows | None = None, note: str = "",
) -> Chart:  # fmt: skip
    """A confusion matrix: counts in cells, colored by the share of their row."""
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    short = distinct(names, 20)
    hover = [
        [f"{short[i]} taken for {short[j]}: {int(counts[i, j]):,} of {int(totals[i, 0]):,}" for j in range(len(names))]
        for i in range(len(names))
    ]
    heatmap = {
        "type": "heatmap", "meta": "scaled", "x": short, "y": short,
        "z": np.round(shares, 4).tolist(), "hovertext": hover,
        "hoverinfo": "text", "colorscale": [[0, "@low"], [1, "@high"]], "zmin": 0, "zmax": 1, "xgap": 1, "ygap": 1,
        "colorbar": {"title": {"text": "share of row"}, "thickness": 12, "tickformat": ".0%"},
    }  # fmt: skip
    layout = _layout("predicted", "measured", legend=False)
    layout["xaxis"] |= {"type": "category", "side": "bottom", "showgrid": False}
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "showgrid": False}
    layout["height"] = 190 + max(220, min(900, 38 * len(names)))
    if len(names) <= 12:
        layout["annotations"] = [
            {"x": short[j], "y": short[i], "text": f"{int(counts[i, j]):,}", "showarrow": False,
             "font": {"size": 11, "color": "@paper" if shares[i, j] > 0.5 else "@ink"}}
            for i in range(len(names)) for j in range(len(names))
        ]  # fmt: skip
    return Chart(title, {"data": [heatmap], "layout": layout}, description, table, note)


def letters_chart(
    title: str, rows: Mapping[str, Sequence[str]], classes: Sequence[str], positions: Sequence[int], *, description: str
) -> Chart:
    """Classes along a chain: a strip for each row, a color for each class."""
    place = {name: number for number, name in enumerate(classes)}
    colors = [COLORS[number % len(COLORS)] for number in range(len(classes))]
    scale = [[(number + end) / len(classes), color] for number, color in enumerate(colors) for end in (0, 1)]
    strips = {
        "type": "heatmap", "x": list(positions), "y": list(rows),
        "z": [[place.get(name) for name in cells] for cells in rows.values()],
        "hovertext": [[f"residue {n}: {row} {plain(c)}" for n, c in zip(positions, cells, strict=True)]
                      for row, cells in rows.items()],
        "hoverinfo": "text", "colorscale": scale, "zmin": -0.5, "zmax": len(classes) - 0.5, "ygap": 6,
        "colorbar": {"tickvals": list(range(len(classes))), "ticktext": [plain(c, 16) for c in classes],
                     "thickness": 12},
    }  # fmt: skip
    layout = _layout("residue", "", legend=False)
    layout["height"] = 220
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "showgrid": False}
    return Chart(title, {"data": [strips], "layout": layout}, description)


def distinct(names: Sequence[str], most: int) -> list[str]:
    """Names for an axis: cut where they are long, and numbered where cutting made them alike, which plotly would join.

    >>> distinct(["membrane, inner", "membrane, outer", "x"], 10)
    ['1. membrane,…', '2. membrane,…', '3. x']
    """
    cut = [plain(name, most) for name in names]
    if len(set(cut)) == len(cut):
        return cut
    return [f"{number}. {name}" for number, name in enumerate(cut, start=1)]


def _diagonal(low: float, high: float) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "hoverinfo": "skip",
        "showlegend": False,
        "line": {"color": "@gray", "width": 1, "dash": "dash"},
    }  # fmt: skip


def _layout(x: str, y: str, *, legend: bool) -> dict[str, Any]:
    axis = {"gridcolor": "@grid", "linecolor": "@line", "zerolinecolor": "@line", "automargin": True, "showline": True}
    return {
        "paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR, "height": 380, "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": "@ink"},
        "xaxis": axis | {"title": {"text": plain(x, 60), "standoff": 10}},
        "yaxis": axis | {"title": {"text": plain(y, 60), "standoff": 8}},
        "showlegend": legend, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest", "dragmode": "zoom",
        "hoverlabel": {"align": "left", "bgcolor": "@panel", "bordercolor": "@line", "font": {"color": "@ink"}},
    }  # fmt: skip


def _rounded(values: Float[np.ndarray, "points"]) -> list[float]:
    """Numbers of six digits: more are not seen, and make the page long."""
    return [float(f"{value:.6g}") for value in values]
