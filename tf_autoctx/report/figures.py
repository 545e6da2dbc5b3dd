"""Plots as PNG files, each written whole or not at all: cases with their outlines, agreement, repeatability, curves."""

import numpy as np
from matplotlib.figure import Figure

from tf_autoctx import metrics
from tf_autoctx.files import replacing

GREY, TRUTH, PREDICTION = "#b8b8b8", "#00e676", "#ffd600"
# One a structure (Okabe and Ito): told apart by the colour-blind too, and none of them grey.
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
LINES = ("solid", "dashed", "dotted")  # of structures 1 to 7, 8 to 14, 15 to 21


def picture(path, image, prediction, truth, spacing, title, structures):
    """Draws the outlines of prediction and truth on three orthogonal slices and writes a PNG.

    One structure is yellow in the prediction and green in the truth. Several have a colour each, which tints them too;
    the truth is in the row above, the prediction in the row below. The slices (axial, coronal, sagittal for a patient
    image) pass through the centroid of the structures in the truth, else in the prediction, else through the centre. A
    2D image gives one panel a row. The file appears whole or not at all, its folder is created.

    Args:
      path: of the PNG.
      image: grey values, (z, y, x) or (y, x).
      prediction, truth: labels of the image's shape; truth may be None.
      spacing: mm per axis in the array's order; None for square pixels.
      title: name of the case; the mean DSC of the structures in the truth is added to it where there is a truth.
      structures: {name: label value}.

    Raises:
      ValueError: shapes differ.
      UserError: the file cannot be written.
    """
    image = np.asarray(image)
    labels = (
        {"prediction": prediction} if truth is None else {"truth": truth, "prediction": prediction}
    )
    labels = {name: np.asarray(label) for name, label in labels.items()}
    if any(label.shape != image.shape for label in labels.values()):
        raise ValueError(
            f"image {image.shape} and labels {[v.shape for v in labels.values()]} need one shape."
        )
    values = list(structures.values())
    if truth is not None:
        inside = [value for value in values if np.any(labels["truth"] == value)] or values
        dsc = 100 * np.mean(
            [metrics.dice(*(label == value for label in labels.values())) for value in inside]
        )
        title = f"{title}   {'mean ' * (len(values) > 1)}DSC {dsc:.1f} %"

    # Rows of panels, each with its outlines: (name, colour, style, label value, labels).
    if len(structures) == 1:
        colours = {"truth": TRUTH, "prediction": PREDICTION}
        rows = {
            "": [(name, colours[name], "solid", values[0], label) for name, label in labels.items()]
        }
    else:
        look = [
            (PALETTE[i % len(PALETTE)], LINES[i // len(PALETTE) % len(LINES)])
            for i in range(len(values))
        ]
        rows = {
            name: [
                (structure, *look[i], value, label)
                for i, (structure, value) in enumerate(structures.items())
            ]
            for name, label in labels.items()
        }
    spacing = np.ones(image.ndim) if spacing is None else np.asarray(spacing, float)
    objects = [found for label in labels.values() if (found := np.isin(label, values)).any()]
    centre = (
        [np.mean(at) for at in np.nonzero(objects[0])] if objects else [n // 2 for n in image.shape]
    )
    centre = [round(at) for at in centre]

    # Panels: the index of the slice, the voxel edges (down, right) in mm. All panels have one scale.
    panels = [((), spacing)] if image.ndim == 2 else []
    for axis in range(3) if image.ndim == 3 else ():
        panels.append(((slice(None),) * axis + (centre[axis],), np.delete(spacing, axis)))
    edges = [np.multiply(image[index].shape, voxel) for index, voxel in panels]
    widths, height = [right for _, right in edges], max(down for down, _ in edges)
    inch = min(12 / sum(widths), 5 / height)
    size = (max(4.5, sum(widths) * inch + 0.3 * len(panels)), len(rows) * height * inch + 0.9)

    figure = Figure(figsize=size, facecolor="black", layout="constrained")
    grid = figure.subplots(len(rows), len(panels), squeeze=False, width_ratios=widths)
    low, high = np.percentile(image, (0.5, 99.5))
    for axes, (row, outlines) in zip(grid, rows.items()):
        for axis, (ax, (index, voxel)) in enumerate(zip(axes, panels)):
            # z grows towards the head, so the slices that show it are drawn with z upwards.
            origin = "lower" if axis else "upper"
            ax.imshow(
                image[index],
                cmap="gray",
                vmin=low,
                vmax=high,
                aspect=voxel[0] / voxel[1],
                origin=origin,
            )
            for _, colour, style, value, label in outlines:
                mask = label[index] == value
                if mask.any():
                    # Filled, as the outline of a neighbour may hide that of a thin vessel.
                    _outline(ax, mask, colour, style, filled=len(structures) > 1)
            ax.set_axis_off()
            if image.ndim == 3:
                ax.set_title(
                    f"{row}  {'zyx'[axis]} = {centre[axis]}".strip(), color=GREY, fontsize=9
                )
            else:
                ax.set_title(row, color=GREY, fontsize=9)
    figure.suptitle(title, color="white", fontsize=12)
    for name, colour, style, _, _ in next(iter(rows.values())):
        grid[0, 0].plot([], [], color=colour, linestyle=style, label=name)
    columns = int(size[0] / 1.6)  # inches for a name
    figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, labelcolor=GREY, fontsize=9
    )
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def strip(path, image, iterations, kept, title, shown=(0, 1, 5, 25), truth=None):
    """Draws how online rendering went: the image, and rendering and mask at some iterations, the kept one among them.

    Args:
      path: of the PNG, which appears whole or not at all.
      image: grey levels (height, width).
      iterations: [{"rendered": (height, width) float32, "label": (height, width), non-zero is the object}].
      kept: number of the kept iteration.
      title: name of the case.
      shown: numbers of iterations; those that there are not are left out.
      truth: mask (height, width), or None.

    Raises:
      UserError: the file cannot be written.
    """
    numbers = sorted({kept, *(number for number in shown if number < len(iterations))})
    panels = [("image", image, None)]
    for number in numbers:
        name = f"iteration {number}{', kept' * (number == kept)}"
        panels.append((name, iterations[number]["rendered"], iterations[number]["label"]))
    figure = Figure(figsize=(2.4 * len(panels), 5.4), facecolor="black", layout="constrained")
    for axes, (name, pixels, mask) in zip(figure.subplots(2, len(panels)).T, panels):
        for ax, below in zip(axes, (pixels, image)):
            ax.imshow(below, cmap="gray", vmin=0, vmax=255)
            ax.set_axis_off()
        axes[0].set_title(name, color=GREY, fontsize=9)
        for outline, colour in ((truth, TRUTH), (mask, PREDICTION)):
            if outline is not None and np.any(outline):
                _outline(axes[1], np.asarray(outline) != 0, colour)
    figure.suptitle(title, color="white", fontsize=12)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def gains(path, curves, title):
    """Draws the change of DSC over iteration 0 at every iteration of online rendering, each image a line, and their mean.

    Args:
      path: of the PNG, which appears whole or not at all.
      curves: DSC in percent, (images, iterations from 0).
      title: of the figure.

    Raises:
      UserError: the file cannot be written.
    """
    change = np.asarray(curves) - np.asarray(curves)[:, :1]
    number, mean = np.arange(change.shape[1]), change.mean(axis=0)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.subplots()
    ax.plot(number, change.T, color=GREY, linewidth=0.8)
    ax.plot(number, mean, color="#009e73", marker="*", label=f"mean of {len(change)} images")
    best = int(mean.argmax())
    ax.set(title=title, xlabel="iteration", ylabel="DSC over that of iteration 0 (points)")
    ax.legend(title=f"highest mean {mean[best]:+.2f}, at iteration {best}")
    ax.grid(alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def before_and_after(path, images, title):
    """Draws images of the source corpus, each above what it is rendered to (Yang et al. 2018, figure 4).

    Args:
      path: of the PNG, which appears whole or not at all.
      images: [(image, rendered)], (height, width) each, from 0 to 1.
      title: of the figure.

    Raises:
      UserError: the file cannot be written.
    """
    figure = Figure(figsize=(2.2 * len(images), 5), facecolor="black", layout="constrained")
    for axes, both in zip(figure.subplots(2, len(images), squeeze=False).T, images):
        for ax, pixels in zip(axes, both):
            ax.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
    figure.suptitle(title, color="white", fontsize=11)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def agreement(path, measured, truth, title):
    """Draws how a measurement agrees with its reference (Yang et al. 2019, figure 8): the one over the other with the
    line of identity, and Bland and Altman's plot, their difference over their mean.

    Args:
      path: of the PNG, which appears whole or not at all.
      measured, truth: for example volumes, (cases,), in the same order; pairs that are not finite are left out.
      title: of the figure; it names the unit.

    Raises:
      ValueError: the two differ in length, or there are fewer than two pairs.
      UserError: the file cannot be written.
    """
    found = metrics.agreement(measured, truth)
    if found["n"] < 2:
        raise ValueError(f"{found['n']} finite pairs; expected two or more.")
    pairs = np.stack([measured, truth]).astype(float)
    measured, truth = pairs[:, np.isfinite(pairs).all(axis=0)]
    figure = Figure(figsize=(11, 5), layout="constrained")
    identity, bland_altman = figure.subplots(1, 2)

    ends = [min(measured.min(), truth.min()), max(measured.max(), truth.max())]
    identity.plot(ends, ends, color=GREY, linestyle="dashed", label="identity")
    identity.scatter(truth, measured, color=PALETTE[4], alpha=0.7)
    identity.set(xlabel="truth", ylabel="measured", aspect="equal")
    identity.legend(title=f"r = {found['pearson_r']:.3f}, {found['n']} cases")

    bland_altman.scatter((measured + truth) / 2, measured - truth, color=PALETTE[4], alpha=0.7)
    bland_altman.axhline(0, color=GREY, linestyle="dashed")
    bland_altman.set(xlabel="mean of measured and truth", ylabel="measured - truth")
    bland_altman.margins(y=0.1)
    beside = {"transform": bland_altman.get_yaxis_transform(), "color": PALETTE[5], "va": "center"}
    for y, name, style in (
        (found["limit_high"], "+1.96 SD", "dotted"),
        (found["bias"], "bias", "solid"),
        (found["limit_low"], "-1.96 SD", "dotted"),
    ):
        bland_altman.axhline(y, color=PALETTE[5], linestyle=style)
        bland_altman.text(1.01, y, f"{name}\n{y:.2f}", **beside)
    for ax in (identity, bland_altman):
        ax.grid(alpha=0.3)
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def repeatability(path, values_by_method, groups, title):
    """Draws how far repeated measurements lie apart (Yang et al. 2019, figure 9 and section 3.2): the SDs of all groups
    as a box a method, with a point a group.

    Args:
      path: of the PNG, which appears whole or not at all.
      values_by_method: {method: finite measurements, for example volumes, (scans,)}.
      groups: what was measured, for example the patient, (scans,). A group of one scan is left out.
      title: of the figure; it names the unit.

    Raises:
      ValueError: a method's values and the groups differ in length, or no group has a second scan.
      UserError: the file cannot be written.
    """
    found = {
        method: metrics.repeatability(values, groups) for method, values in values_by_method.items()
    }
    spread = [list(one["sd"].values()) for one in found.values()]
    if not any(spread):
        raise ValueError("no group has a second scan; expected at least one.")
    figure = Figure(figsize=(2.5 + 2 * len(found), 5), layout="constrained")
    ax = figure.subplots()
    names = [
        f"{method}\nmean {{mean:.2f}}\n{{min:.2f}} to {{max:.2f}}".format_map(one)
        for method, one in found.items()
    ]
    ax.boxplot(spread, widths=0.5, showfliers=False, medianprops={"color": PALETTE[5]})
    ax.set_xticks(range(1, len(found) + 1), names)
    for number, values in enumerate(spread, start=1):
        aside = np.linspace(
            -0.12, 0.12, len(values)
        )  # a group stands at the same place in every box
        ax.scatter(number + aside, values, color=PALETTE[4], alpha=0.6, s=16, zorder=3)
    ax.set(title=title, ylabel=f"SD within a group (groups: {len(spread[0])})", ylim=(0, None))
    ax.grid(axis="y", alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def history(path, epochs, title):
    """Draws how a training went, epoch by epoch: loss, validation DSC, and the time of a step with its wait for data.

    Args:
      path: of the PNG.
      epochs: list of dicts with "loss", "seconds_per_step", "seconds_waiting_for_data" and, where there was one,
        "val_DSC".
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
    figure = Figure(figsize=(12, 3.6), layout="constrained")
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
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def _outline(ax, mask, colour, style="solid", filled=False):
    """Draws the outline of a mask (height, width), closed where the object touches the border."""
    down, right = (np.arange(-1, n + 1) for n in mask.shape)
    ax.contour(
        right, down, np.pad(mask, 1), levels=[0.5], colors=colour, linewidths=1.6, linestyles=style
    )
    if filled:
        ax.contourf(right, down, np.pad(mask, 1), levels=[0.5, 1], colors=colour, alpha=0.3)
