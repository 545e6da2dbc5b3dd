"""Tables and figures from results.

A row is a dict {"method", "case", "group", "structure", **metrics}, one per case, method and structure, with the
scores of `metrics.compare`.
"""

import csv
import json
import math
import pathlib

import numpy as np
from matplotlib.figure import Figure

from tf_autoctx import metrics
from tf_autoctx.files import replacing

LABELS = ("method", "case", "group", "structure")
COLUMNS = ("DSC", "Conf", "Jacc", "Adb", "Hdb", "volume_error", "area_error")  # of the printed table
GREY, TRUTH, PREDICTION = "#b8b8b8", "#00e676", "#ffd600"


def write(rows, directory):
    """Writes `cases.csv` (a line per row, infinity as inf) and `summary.json` (of `summarize`, null where not finite).

    Each appears whole or not at all; the folder is created.

    Raises:
      ValueError: two rows have the same method, structure and case.
      UserError: the folder cannot be written.
    """
    summary = summarize(rows)
    directory = pathlib.Path(directory)
    with replacing(directory / "cases.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, [*LABELS, *_metric_names(rows)], lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)
    with replacing(directory / "summary.json") as path:
        text = json.dumps(_finite(summary), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def summarize(rows):
    """What the rows say together.

    Returns:
      {"methods": {method: {structure: {"n" cases, "n_missed" (truth without prediction), "n_false" (prediction without
      truth), "metrics": {metric: `metrics.summarize`}}}},
      "paired": [{"method", "against" the method before it, "structure", "metrics": {metric: `metrics.paired` on the
      cases of both}}]}, methods and structures in the order of the rows.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    methods, names = {}, _metric_names(rows)
    for row in rows:
        cases = methods.setdefault(row["method"], {}).setdefault(row["structure"], {})
        if row["case"] in cases:
            raise ValueError(f"two rows for {row['method']}, {row['structure']}, {row['case']}; expected one.")
        cases[row["case"]] = row
    summary = {"methods": {}, "paired": []}
    for method, structures in methods.items():
        summary["methods"][method] = {}
        for structure, cases in structures.items():
            sizes = [_sizes(row) for row in cases.values()]
            summary["methods"][method][structure] = {
                "n": len(cases),
                "n_missed": sum(truth > 0 and size == 0 for size, truth in sizes),
                "n_false": sum(truth == 0 and size > 0 for size, truth in sizes),
                "metrics": {m: metrics.summarize([row[m] for row in cases.values() if m in row]) for m in names},
            }
    for before, after in zip(list(methods), list(methods)[1:]):
        for structure in methods[after]:
            new, old = methods[after][structure], methods[before].get(structure, {})
            pairs = [(new[case], old[case]) for case in new if case in old]
            tests = {}
            for m in names:
                values = [(a[m], b[m]) for a, b in pairs if m in a and m in b]
                tests[m] = metrics.paired([a for a, _ in values], [b for _, b in values])
            summary["paired"].append({"method": after, "against": before, "structure": structure, "metrics": tests})
    return summary


def table(rows):
    """The results as plain text within 150 columns: mean and SD per method, the confidence interval on the line below.

    With two or more methods a line per later method compares its DSC with that of the method before it.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    summary = summarize(rows)
    several = len({row["structure"] for row in rows}) > 1
    shown = [name for name in _metric_names(rows) if name.rpartition("_")[0] in COLUMNS]
    header = ["method", *["structure"] * several, "n", "missed", "false"]
    titles = ["{0[0]} ({0[2]})".format(name.rpartition("_")) for name in shown]
    lines = [header + [title.replace("_", " ").replace("percent", "%") for title in titles]]
    for method, structures in summary["methods"].items():
        for structure, cell in structures.items():
            values = [cell["metrics"][name] for name in shown]
            counts = [str(cell[count]) for count in ("n", "n_missed", "n_false")]
            # One case has a value but no spread, none has neither.
            means = [("-", "{mean:.2f}", "{mean:.2f} ± {sd:.2f}")[min(v["n"], 2)].format_map(v) for v in values]
            intervals = ["[{ci_low:.2f}, {ci_high:.2f}]".format_map(v) if v["n"] > 1 else "" for v in values]
            lines += [[method, *[structure] * several, *counts, *means], [""] * len(header) + intervals]

    widths = [max(map(len, column)) for column in zip(*lines)]
    names = 1 + several  # columns of words are flush left, numbers flush right
    text = []
    for line in lines:
        cells = [word.ljust(w) if i < names else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths))]
        text.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, text))
    text = [text[0], rule, *text[1:], rule]
    text.append("mean ± SD over the cases where the value is finite; below it the 95 % confidence interval of the mean")
    text.append("missed: truth without prediction; false: prediction without truth")
    for pair in summary["paired"]:
        dsc = pair["metrics"]["DSC_percent"]
        where = f", {pair['structure']}" if several else ""
        if dsc["n"]:
            p = "p < 0.0001" if dsc["p"] < 1e-4 else f"p = {dsc['p']:.4f}"
            result = "DSC {mean_difference:+.2f} % [{ci_low:+.2f}, {ci_high:+.2f}], ".format_map(dsc) + p
            result += f" (Wilcoxon, {dsc['n']} pairs)"
        else:
            result = "no case in common"
        text.append(f"{pair['method']} against {pair['against']}{where}: {result}")
    return "\n".join(text)


def picture(path, image, prediction, truth, spacing, title):
    """Draws the outlines of prediction (yellow) and truth (green) on three orthogonal slices and writes a PNG.

    The slices (axial, coronal, sagittal for a patient image) pass through the centroid of the truth, else of the
    prediction, else through the centre. A 2D image gives one panel. The file appears whole or not at all, its folder is
    created.

    Args:
      path: of the PNG.
      image: grey values, (z, y, x) or (y, x).
      prediction, truth: masks of the image's shape; truth may be None.
      spacing: mm per axis in the array's order; None for square pixels.
      title: name of the case; the DSC is added to it where there is a truth.

    Raises:
      ValueError: shapes differ.
      UserError: the file cannot be written.
    """
    image, prediction = np.asarray(image), np.asarray(prediction) != 0
    masks = [("prediction", PREDICTION, prediction)]
    if truth is not None:
        title = f"{title}   DSC {100 * metrics.dice(prediction, truth):.1f} %"
        masks.insert(0, ("truth", TRUTH, np.asarray(truth) != 0))
    if any(mask.shape != image.shape for _, _, mask in masks):
        raise ValueError(f"image {image.shape} and masks {[mask.shape for _, _, mask in masks]} need one shape.")
    spacing = np.ones(image.ndim) if spacing is None else np.asarray(spacing, float)
    objects = [mask for _, _, mask in masks if mask.any()]
    centre = [np.mean(at) for at in np.nonzero(objects[0])] if objects else [n // 2 for n in image.shape]
    centre = [round(at) for at in centre]

    # Panels: the index of the slice, the voxel edges (down, right) in mm. All panels have one scale.
    panels = [((), spacing)] if image.ndim == 2 else []
    for axis in range(3) if image.ndim == 3 else ():
        panels.append(((slice(None),) * axis + (centre[axis],), np.delete(spacing, axis)))
    edges = [np.multiply(image[index].shape, voxel) for index, voxel in panels]
    widths, height = [right for _, right in edges], max(down for down, _ in edges)
    inch = min(12 / sum(widths), 5 / height)
    size = (max(4.5, sum(widths) * inch + 0.3 * len(panels)), height * inch + 0.9)

    figure = Figure(figsize=size, facecolor="black", layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    low, high = np.percentile(image, (0.5, 99.5))
    for axis, (ax, (index, voxel)) in enumerate(zip(axes, panels)):
        # z grows towards the head, so the slices that show it are drawn with z upwards.
        origin = "lower" if axis else "upper"
        ax.imshow(image[index], cmap="gray", vmin=low, vmax=high, aspect=voxel[0] / voxel[1], origin=origin)
        for _, colour, mask in masks:
            if mask[index].any():
                # The margin closes the outline of an object that touches the border.
                down, right = (np.arange(-1, n + 1) for n in mask[index].shape)
                ax.contour(right, down, np.pad(mask[index], 1), levels=[0.5], colors=colour, linewidths=1.6)
        ax.set_axis_off()
        if image.ndim == 3:
            ax.set_title(f"{'zyx'[axis]} = {centre[axis]}", color=GREY, fontsize=9)
    figure.suptitle(title, color="white", fontsize=12)
    for name, colour, _ in masks:
        axes[0].plot([], [], color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=GREY, fontsize=9)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


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
            ax.plot(number, column.get(line, np.full(len(epochs), np.nan)), marker=".", label=line.replace("_", " "))
        ax.set(title=name, xlabel="epoch")
        ax.grid(alpha=0.3)
    ax.set_ylim(bottom=0)
    ax.legend(title=f"{100 * waiting:.2f} % of the time waiting for data", fontsize=8)
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def _metric_names(rows):
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name not in LABELS]


def _sizes(row):
    """Size of the prediction and of the truth: volume_mL and truth_volume_mL, or what stands for them in 2D."""
    name = next(name for name in row if name.startswith("truth_"))
    return row[name.removeprefix("truth_")], row[name]


def _finite(value):
    """The same nested dicts and lists with None in place of every NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
