"""Figures as PNG files, each written whole or not at all.

Cases with their outlines, agreement, repeatability, curves. Matplotlib is imported with the first.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tf_autoctx import metrics
from tf_autoctx.files import replacing
from tf_autoctx.growth import CENTILES, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Path = str | pathlib.Path
Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # {name: (x, y)}
# {"truth", where there is one, and "prediction": {structure: mask}}
Masks = Mapping[str, Mapping[str, np.ndarray]]

GREY, TRUTH, PREDICTION = "#b8b8b8", "#00e676", "#ffd600"
# One a structure (Okabe and Ito): told apart by the colour-blind too, and none of them grey.
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
LINES = ("solid", "dashed", "dotted")  # of structures 1 to 7, 8 to 14, 15 to 21


@dataclasses.dataclass(frozen=True)
class _Outline:
    """An outline of a picture: what it is called, how it is drawn, and the voxels it is of."""

    name: str
    colour: str
    style: str
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A slice of an image: its index, its voxels' edges (down, right) in mm, and its title."""

    index: tuple[Any, ...]
    voxel: np.ndarray
    title: str
    origin: str


def picture(
    path: Path,
    image: npt.ArrayLike,
    prediction: npt.ArrayLike,
    truth: npt.ArrayLike | None,
    spacing: Sequence[float] | None,
    title: str,
    structures: Mapping[int, str],
    regions: metrics.Regions = metrics.NO_REGIONS,
) -> None:
    """Draws the outlines of prediction and truth on three orthogonal slices and writes a PNG.

    One structure is yellow in the prediction and green in the truth. Several have a colour each,
    which tints them too; the truth is in the row above, the prediction in the row below. The slices
    (axial, coronal, sagittal for a patient image) pass through the centroid of the structures in
    the truth, else in the prediction, else through the centre. A 2D image gives one panel per row.
    The file appears whole or not at all, its folder is created.

    Args:
      path: of the PNG.
      image: grey values, (z, y, x) or (y, x).
      prediction, truth: labels of the image's shape; truth may be None.
      spacing: mm per axis in the array's order; None for square pixels.
      title: name of the case; the mean DSC of the structures in the truth is added to it where
        there is a truth.
      structures: {label value: name}.
      regions: those among the structures, see `metrics.mask_of`.

    Raises:
      ValueError: shapes differ.
      UserError: the file cannot be written.
    """
    voxels = np.asarray(image)
    labels = {} if truth is None else {"truth": np.asarray(truth)}
    labels["prediction"] = np.asarray(prediction)
    if any(label.shape != voxels.shape for label in labels.values()):
        raise ValueError(
            f"image {voxels.shape} and labels {[v.shape for v in labels.values()]} need one shape."
        )
    masks = {
        row: {name: metrics.mask_of(label, v, regions) for v, name in structures.items()}
        for row, label in labels.items()
    }
    if truth is not None:
        title = f"{title}   {_mean_dice(masks)}"
    rows = _outlines(masks)
    panels = _panels(masks, spacing)

    # All panels have one scale.
    edges = [np.multiply(voxels[panel.index].shape, panel.voxel) for panel in panels]
    widths, height = [right for _, right in edges], max(down for down, _ in edges)
    inch = min(12 / sum(widths), 5 / height)
    size = (max(4.5, sum(widths) * inch + 0.3 * len(panels)), len(rows) * height * inch + 0.9)

    figure = _figure(size, facecolor="black")
    grid = figure.subplots(len(rows), len(panels), squeeze=False, width_ratios=widths)
    window = np.percentile(voxels, (0.5, 99.5))
    for axes, (row, outlines) in zip(grid, rows.items()):
        for ax, panel in zip(axes, panels):
            _draw_panel(ax, panel, voxels, window, outlines, filled=len(structures) > 1)
            ax.set_title(f"{row}  {panel.title}".strip(), color=GREY, fontsize=9)
    figure.suptitle(title, color="white", fontsize=12)
    for outline in next(iter(rows.values())):
        grid[0, 0].plot([], [], color=outline.colour, linestyle=outline.style, label=outline.name)
    columns = int(size[0] / 1.6)  # inches for a name
    figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, labelcolor=GREY, fontsize=9
    )
    _save(path, figure, dpi=120)


def _mean_dice(masks: Masks) -> str:
    """The mean DSC of the structures in the truth, as words."""
    truth, prediction = masks["truth"], masks["prediction"]
    inside = [name for name, mask in truth.items() if mask.any()] or list(truth)
    dice = [metrics.dice(prediction[name], truth[name]) for name in inside]
    return f"{'mean ' * (len(truth) > 1)}DSC {100 * np.mean(dice):.1f} %"


def _outlines(masks: Masks) -> dict[str, list[_Outline]]:
    """{title of a row of panels: what is drawn on each}."""
    structures = len(masks["prediction"])
    if structures == 1:
        colours = {"truth": TRUTH, "prediction": PREDICTION}
        outlines = [
            _Outline(row, colours[row], "solid", *of_row.values()) for row, of_row in masks.items()
        ]
        return {"": outlines}
    return {
        row: [
            _Outline(name, *style, mask)
            for style, (name, mask) in zip(_looks(structures), of_row.items())
        ]
        for row, of_row in masks.items()
    }


def _looks(structures: int) -> list[tuple[str, str]]:
    """(colour, line style) of so many structures."""
    return [
        (PALETTE[i % len(PALETTE)], LINES[i // len(PALETTE) % len(LINES)])
        for i in range(structures)
    ]


def _panels(masks: Masks, spacing: Sequence[float] | None) -> list[_Panel]:
    """The slices that a picture shows, see there."""
    shape = next(iter(masks["prediction"].values())).shape
    voxel = np.ones(len(shape)) if spacing is None else np.asarray(spacing, float)
    if len(shape) == 2:
        return [_Panel((), voxel, "", "upper")]
    centre = [n // 2 for n in shape]
    for of_row in masks.values():
        inside = np.nonzero(functools.reduce(np.logical_or, of_row.values()))
        if len(inside[0]):
            centre = [round(np.mean(at)) for at in inside]
            break
    return [
        _Panel(
            (slice(None),) * axis + (centre[axis],),
            np.delete(voxel, axis),
            f"{'zyx'[axis]} = {centre[axis]}",
            # Volumes are read in `images.ORIENTATION`: x grows to the left, so that the patient's
            # left is on the right, y to the back, downwards, and z to the head, upwards.
            "lower" if axis else "upper",
        )
        for axis in range(3)
    ]


def _draw_panel(
    ax: Axes,
    panel: _Panel,
    image: np.ndarray,
    window: np.ndarray,
    outlines: Sequence[_Outline],
    filled: bool,
) -> None:
    """Draws a slice of an image, grey levels between two values, and outlines on it."""
    low, high = window
    look = {"aspect": panel.voxel[0] / panel.voxel[1], "origin": panel.origin}
    ax.imshow(image[panel.index], cmap="gray", vmin=low, vmax=high, **look)
    for outline in outlines:
        mask = outline.mask[panel.index]
        if mask.any():
            # Filled, as the outline of a neighbour may hide that of a thin vessel.
            _draw_outline(ax, mask, outline.colour, outline.style, filled)
    ax.set_axis_off()


def _figure(size: tuple[float, float], **arguments: Any) -> Figure:
    """A new figure of (width, height) in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained", **arguments)


def _save(path: Path, figure: Figure, dpi: int = 100) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi)


def strip(
    path: Path,
    image: np.ndarray,
    iterations: Sequence[Mapping[str, np.ndarray]],
    kept: int,
    title: str,
    shown: Sequence[int] = (0, 1, 5, 25),
    truth: np.ndarray | None = None,
) -> None:
    """Draws how online rendering went.

    The image, and rendering and mask at some iterations, the kept one among them.

    Args:
      path: of the PNG, which appears whole or not at all.
      image: grey levels (height, width).
      iterations: [{"rendered": (height, width) float32, "label": (height, width), non-zero is the
        object}].
      kept: number of the kept iteration.
      title: name of the case.
      shown: numbers of iterations; those that there are not are left out.
      truth: mask (height, width), or None.

    Raises:
      UserError: the file cannot be written.
    """
    numbers = sorted({kept, *(number for number in shown if number < len(iterations))})
    panels: list[tuple[str, np.ndarray, np.ndarray | None]] = [("image", image, None)]
    for number in numbers:
        name = f"iteration {number}{', kept' * (number == kept)}"
        panels.append((name, iterations[number]["rendered"], iterations[number]["label"]))
    figure = _figure((2.4 * len(panels), 5.4), facecolor="black")
    for axes, (name, pixels, mask) in zip(figure.subplots(2, len(panels)).T, panels):
        for ax, below in zip(axes, (pixels, image)):
            ax.imshow(below, cmap="gray", vmin=0, vmax=255)
            ax.set_axis_off()
        axes[0].set_title(name, color=GREY, fontsize=9)
        for outline, colour in ((truth, TRUTH), (mask, PREDICTION)):
            if outline is not None and np.any(outline):
                _draw_outline(axes[1], np.asarray(outline) != 0, colour)
    figure.suptitle(title, color="white", fontsize=12)
    _save(path, figure)


def gains(path: Path, curves: npt.ArrayLike, title: str) -> None:
    """Draws the change of DSC over iteration 0 at every iteration of online rendering.

    Each image is a line, and their mean.

    Args:
      path: of the PNG, which appears whole or not at all.
      curves: DSC in percent, (images, iterations from 0).
      title: of the figure.

    Raises:
      UserError: the file cannot be written.
    """
    change = np.asarray(curves) - np.asarray(curves)[:, :1]
    number, mean = np.arange(change.shape[1]), change.mean(axis=0)
    figure = _figure((8, 4.5))
    ax = figure.subplots()
    ax.plot(number, change.T, color=GREY, linewidth=0.8)
    ax.plot(number, mean, color="#009e73", marker="*", label=f"mean of {len(change)} images")
    best = int(mean.argmax())
    ax.set(title=title, xlabel="iteration", ylabel="DSC over that of iteration 0 (points)")
    ax.legend(title=f"highest mean {mean[best]:+.2f}, at iteration {best}")
    ax.grid(alpha=0.3)
    _save(path, figure)


def curves(
    path: Path,
    runs: Mapping[str, Sequence[Sequence[float]]],
    beside: Mapping[str, Sequence[Sequence[float]]],
    title: str,
) -> None:
    """Draws the mean DSC at every iteration of online rendering, a curve for each method.

    A curve is the mean over runs, with a band of their SD. Methods without iterations are level.

    Args:
      path: of the PNG, which appears whole or not at all.
      runs: {method: [DSC in percent at every iteration from 0, of every run]}.
      beside: the same of another evaluation, which is dashed.
      title: of the figure.

    Raises:
      UserError: the file cannot be written.
    """
    figure = _figure((9, 5.5))
    ax = figure.subplots()
    last = max(len(curve) for of_all in (runs, beside) for of in of_all.values() for curve in of)
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate({**runs, **beside})}
    for style, of_all, note in (("solid", runs, ""), ("dashed", beside, ", before")):
        for name, of_method in of_all.items():
            values = np.array(of_method, float)
            if values.shape[1] == 1:
                values = np.repeat(values, last, axis=1)
            number, mean = np.arange(values.shape[1]), values.mean(axis=0)
            label = f"{name}{note} ({len(values)} run{'s' * (len(values) > 1)})"
            ax.plot(number, mean, color=colours[name], linestyle=style, label=label)
            if len(values) > 1 and style == "solid":
                sd = values.std(axis=0, ddof=1)
                ax.fill_between(number, mean - sd, mean + sd, color=colours[name], alpha=0.15)
    ax.set(title=title, xlabel="iteration", ylabel="mean DSC (%), band: SD over runs")
    ax.legend(loc="lower right", fontsize=8)
    ax.grid(alpha=0.3)
    _save(path, figure)


def before_and_after(
    path: Path, images: Sequence[tuple[np.ndarray, np.ndarray]], title: str
) -> None:
    """Draws images of the source corpus above what they are rendered to.

    Yang et al. 2018, figure 4.

    Args:
      path: of the PNG, which appears whole or not at all.
      images: [(image, rendered)], (height, width) each, from 0 to 1.
      title: of the figure.

    Raises:
      UserError: the file cannot be written.
    """
    figure = _figure((2.2 * len(images), 5), facecolor="black")
    for axes, both in zip(figure.subplots(2, len(images), squeeze=False).T, images):
        for ax, pixels in zip(axes, both):
            ax.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
    figure.suptitle(title, color="white", fontsize=11)
    _save(path, figure)


def agreement(path: Path, measured: npt.ArrayLike, truth: npt.ArrayLike, title: str) -> None:
    """Draws how a measurement agrees with its reference (Yang et al. 2019, figure 8).

    The one over the other with the line of identity, and Bland and Altman's plot, their difference
    over their mean.

    Args:
      path: of the PNG, which appears whole or not at all.
      measured, truth: for example volumes, (cases,), in the same order; pairs that are not finite
        are left out.
      title: of the figure; it names the unit.

    Raises:
      ValueError: the two differ in length, or there are fewer than two pairs.
      UserError: the file cannot be written.
    """
    result = metrics.agreement(measured, truth)
    if result["n"] < 2:
        raise ValueError(f"{result['n']} finite pairs; expected two or more.")
    pairs = np.stack([np.asarray(measured, float), np.asarray(truth, float)])
    own, reference = pairs[:, np.isfinite(pairs).all(axis=0)]
    figure = _figure((11, 5))
    identity, bland_altman = figure.subplots(1, 2)

    ends = [min(own.min(), reference.min()), max(own.max(), reference.max())]
    identity.plot(ends, ends, color=GREY, linestyle="dashed", label="identity")
    identity.scatter(reference, own, color=PALETTE[4], alpha=0.7)
    identity.set(xlabel="truth", ylabel="measured", aspect="equal")
    identity.legend(title=f"r = {result['pearson_r']:.3f}, {result['n']} cases")

    bland_altman.scatter((own + reference) / 2, own - reference, color=PALETTE[4], alpha=0.7)
    bland_altman.axhline(0, color=GREY, linestyle="dashed")
    bland_altman.set(xlabel="mean of measured and truth", ylabel="measured - truth")
    bland_altman.margins(y=0.1)
    beside = {"transform": bland_altman.get_yaxis_transform(), "color": PALETTE[5], "va": "center"}
    for y, name, style in (
        (result["limit_high"], "+1.96 SD", "dotted"),
        (result["bias"], "bias", "solid"),
        (result["limit_low"], "-1.96 SD", "dotted"),
    ):
        bland_altman.axhline(y, color=PALETTE[5], linestyle=style)
        bland_altman.text(1.01, y, f"{name}\n{y:.2f}", **beside)
    for ax in (identity, bland_altman):
        ax.grid(alpha=0.3)
    figure.suptitle(title)
    _save(path, figure)


def repeatability(
    path: Path,
    values_by_method: Mapping[str, Sequence[float]],
    groups: Sequence[str],
    title: str,
) -> None:
    """Draws how far repeated measurements lie apart (Yang et al. 2019, figure 9 and section 3.2).

    The SDs of all groups are a box per method, with a point per group.

    Args:
      path: of the PNG, which appears whole or not at all.
      values_by_method: {method: finite measurements, for example volumes, (scans,)}.
      groups: what was measured, for example the patient, (scans,). A group of one scan is left out.
      title: of the figure; it names the unit.

    Raises:
      ValueError: a method's values and the groups differ in length, or no group has a second scan.
      UserError: the file cannot be written.
    """
    results = {
        method: metrics.repeatability(values, groups) for method, values in values_by_method.items()
    }
    spread = [list(result["sd"].values()) for result in results.values()]
    if not any(spread):
        raise ValueError("no group has a second scan; expected at least one.")
    figure = _figure((2.5 + 2 * len(results), 5))
    ax = figure.subplots()
    names = [
        f"{method}\nmean {{mean:.2f}}\n{{min:.2f}} to {{max:.2f}}".format_map(result)
        for method, result in results.items()
    ]
    ax.boxplot(spread, widths=0.5, showfliers=False, medianprops={"color": PALETTE[5]})
    ax.set_xticks(range(1, len(results) + 1), names)
    for number, values in enumerate(spread, start=1):
        aside = np.linspace(-0.12, 0.12, len(values))  # a group has the same place in every box
        ax.scatter(number + aside, values, color=PALETTE[4], alpha=0.6, s=16, zorder=3)
    ax.set(title=title, ylabel=f"SD within a group (groups: {len(spread[0])})", ylim=(0, None))
    ax.grid(axis="y", alpha=0.3)
    _save(path, figure)


def calibration(path: Path, curves: Mapping[str, np.ndarray], title: str) -> None:
    """Draws how often what has a probability is true (Guo et al. 2017, figure 1): below the
    diagonal a method is too sure of a structure, above it not sure enough.

    Args:
      path: of the PNG, which appears whole or not at all.
      curves: {structure: `metrics.reliability`}.
      title: of the figure.

    Raises:
      UserError: the file cannot be written.
    """
    figure = _figure((6.5, 5.5))
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="dashed")
    for (name, bins), (colour, style) in zip(curves.items(), _looks(len(curves))):
        label = f"{name}: ECE {metrics.calibration_error(bins):.2f} %"
        x, y = metrics.reliability_curve(bins)
        ax.plot(x, y, color=colour, linestyle=style, marker="o", label=label)
    ax.set(title=title, xlabel="probability", ylabel="share of voxels that are the structure")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(loc="upper left")
    ax.grid(alpha=0.3)
    _save(path, figure)


def growth(path: Path, chart: Chart, reference: Lines, subjects: Lines, title: str) -> None:
    """Draws a growth chart: its centiles, the subjects that it is made of, and others on it, the
    visits of one joined by a line.

    Args:
      path: of the PNG, which appears whole or not at all.
      chart: of the measurement.
      reference: {subject: (ages in weeks, values)} of the chart; empty where they are not known.
      subjects: the same of those that are looked at.
      title: of the measurement, with its unit.

    Raises:
      UserError: the file cannot be written.
    """
    figure = _figure((8, 5.5))
    ax = figure.subplots()
    label = f"{len(reference)} subjects of the chart"
    if reference:
        ax.plot(*joined(reference), ".", color=GREY, markersize=4, label=label)
    weeks = np.linspace(*chart.ages, 200)
    for percent in CENTILES:
        curve = chart.centile(weeks, percent)
        ax.plot(weeks, curve, color=PALETTE[4], linewidth=1.8 if percent == 50 else 1)
        ax.annotate(f" {percent}", (weeks[-1], curve[-1]), color=PALETTE[4], va="center")
    look: dict[str, Any] = {"color": PALETTE[5], "markersize": 4, "linewidth": 1}
    ax.plot(*joined(subjects), "o-", **look, label=f"visits of {len(subjects)} subjects")
    ax.set(title=f"{title}: centiles 3, 10, 50, 90, 97", xlabel="age (weeks)", ylabel=title)
    ax.legend(loc="upper left")
    ax.grid(alpha=0.3)
    _save(path, figure)


def joined(lines: Lines) -> tuple[list[float], list[float]]:
    """(x, y) of several lines as one, interrupted by NaN after each."""
    parts = list(lines.values())
    x, y = ([value for part in parts for value in (*part[axis], np.nan)] for axis in (0, 1))
    return x, y


def history(path: Path, epochs: Sequence[Mapping[str, float]], title: str) -> None:
    """Draws how a training went, epoch by epoch.

    Loss, validation DSC, and the time of a step with its wait for data.

    Args:
      path: of the PNG.
      epochs: list of dicts with "loss", "seconds_per_step", "seconds_waiting_for_data" and, where
        there was one, "val_DSC".
      title: of the figure.

    Raises:
      UserError: the file cannot be written.
    """
    number = np.arange(1, len(epochs) + 1)
    column = {name: [logs[name] for logs in epochs] for name in epochs[0]}
    waiting = sum(column["seconds_waiting_for_data"]) / sum(column["seconds_per_step"])
    panels = [
        ("loss", ["loss"]),
        ("validation DSC", ["val_DSC"]),
        ("seconds per step", ["seconds_per_step", "seconds_waiting_for_data"]),
    ]
    figure = _figure((12, 3.6))
    for ax, (name, lines) in zip(figure.subplots(1, 3), panels):
        for line in lines:
            ax.plot(
                number,
                column.get(line, np.full(len(epochs), np.nan)),
                marker=".",
                label=line.replace("_", " "),
            )
        ax.set(title=name, xlabel="epoch")
        ax.grid(alpha=0.3)
    ax.set_ylim(bottom=0)
    ax.legend(title=f"{100 * waiting:.2f} % of the time waiting for data", fontsize=8)
    figure.suptitle(title)
    _save(path, figure)


def _draw_outline(
    ax: Axes, mask: np.ndarray, colour: str, style: str = "solid", filled: bool = False
) -> None:
    """Draws the outline of a mask (height, width), closed where the object touches the border."""
    down, right = (np.arange(-1, n + 1) for n in mask.shape)
    ax.contour(
        right, down, np.pad(mask, 1), levels=[0.5], colors=colour, linewidths=1.6, linestyles=style
    )
    if filled:
        ax.contourf(right, down, np.pad(mask, 1), levels=[0.5, 1], colors=colour, alpha=0.3)
