"""Tables and figures from results.

A row is a dict {"system", "method", "case", "group", "structure", **metrics}, one per case, method and structure, with
the scores of `metrics.compare`. On disk it is as many lines of one long table, which everything else comes from.
"""

import csv
import json
import math
import pathlib

import numpy as np
from matplotlib.figure import Figure

from tf_autoctx import metrics
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing

LABELS = ("system", "method", "case", "group", "structure")
LONG = (*LABELS, "metric", "value")  # columns of the long table
COLUMNS = ("DSC", "Conf", "Jacc", "Adb", "Hdb", "volume_error", "area_error")  # of the printed table
GREY, TRUTH, PREDICTION = "#b8b8b8", "#00e676", "#ffd600"
NOTES = (  # below the printed table
    "mean ± SD over the cases where the value is finite; below it the 95 % confidence interval of the mean",
    "missed: truth without prediction; false: prediction without truth",
)
# One a structure (Okabe and Ito): told apart by the colour-blind too, and none of them grey.
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
LINES = ("solid", "dashed", "dotted")  # of structures 1 to 7, 8 to 14, 15 to 21


def write(rows, directory, pairs=None):
    """Writes the long table `scores.csv` (a line per row and metric, infinity as inf), and what comes from it:
    `cases.csv` (a line per row) and `summary.json` (of `summarize`, null where not finite).

    Each appears whole or not at all; the folder is created.

    Raises:
      ValueError: two rows have the same method, structure and case.
      UserError: the folder cannot be written.
    """
    summary = summarize(rows, pairs)
    directory = pathlib.Path(directory)
    long = [
        {label: row[label] for label in LABELS} | {"metric": metric, "value": value}
        for row in rows
        for metric, value in row.items()
        if metric not in LABELS
    ]
    for name, columns, lines in ("scores.csv", LONG, long), ("cases.csv", (*LABELS, *_metric_names(rows)), rows):
        with replacing(directory / name) as path, open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(lines)
    with replacing(directory / "summary.json") as path:
        text = json.dumps(_finite(summary), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def read(directory):
    """The rows of `scores.csv`, as `write` was given them.

    Raises:
      UserError: there is no such file in the folder, or it holds something else.
    """
    path = pathlib.Path(directory) / "scores.csv"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark at the beginning
            table = csv.DictReader(file)
            lines = [(table.line_num, line) for line in table]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected the results of an evaluation, of this release.") from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{path}: is not a text file; expected the results of an evaluation.") from None
    rows = {}
    for number, line in lines:
        try:
            metric, score = line.pop("metric"), float(line.pop("value"))
            about = {name: line.pop(name) for name in LABELS}
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}, line {number}: expected {', '.join(LONG)}, the value a number.") from None
        row = rows.setdefault((about["method"], about["structure"], about["case"]), dict(about))
        if line or metric in row or row | about != row:
            raise UserError(
                f"{path}, line {number}: a value too many; expected one a metric, case, structure and method, all of "
                "one system and group."
            )
        row[metric] = score
    for row in rows.values():
        try:
            _sizes(row), row["DSC_percent"]
        except (KeyError, StopIteration):
            raise UserError(
                f"{path}: {row['method']}, {row['case']}, {row['structure']}: lacks a metric; expected DSC_percent, and "
                "the size of prediction and truth."
            ) from None
    return list(rows.values())


def summarize(rows, pairs=None):
    """What the rows say together.

    Args:
      rows: see above.
      pairs: [(method, another to compare it with)]; None compares each method with the one before it.

    Returns:
      {"methods": {method: {structure: {"n" cases, "n_missed" (truth without prediction), "n_false" (prediction without
      truth), "metrics": {metric: `metrics.summarize`}}}},
      "paired": [{"method", "against", "structure", "metrics": {metric: `metrics.paired` on the
      cases of both}}]}, methods and structures in the order of the rows.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    methods, names = _by_method(rows), _metric_names(rows)
    summary = {"methods": {}, "paired": []}
    for method, structures in methods.items():
        summary["methods"][method] = {}
        for structure, cases in structures.items():
            sizes = [_sizes(row) for row in cases.values()]
            summary["methods"][method][structure] = {
                "n": len(cases),
                "n_missed": sum(truth > 0 and size == 0 for size, truth in sizes),
                "n_false": _n_false(cases),
                "metrics": {m: metrics.summarize([row[m] for row in cases.values() if m in row]) for m in names},
            }
    for after, before in pairs if pairs is not None else zip(list(methods)[1:], methods):
        for structure in methods[after]:
            new, old = methods[after][structure], methods[before].get(structure, {})
            both = [(new[case], old[case]) for case in new if case in old]
            tests = {}
            for m in names:
                values = [(a[m], b[m]) for a, b in both if m in a and m in b]
                tests[m] = metrics.paired([a for a, _ in values], [b for _, b in values])
            summary["paired"].append({"method": after, "against": before, "structure": structure, "metrics": tests})
    return summary


def table(rows, columns=COLUMNS, pairs=None):
    """The results as plain text: mean and SD per method, the confidence interval on the line below, and for every pair of
    methods a line that compares their DSC, if it is a column.

    Args:
      rows, pairs: see `summarize`.
      columns: metrics without their units; the default fits into 150 columns.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    summary = summarize(rows, pairs)
    several = len({row["structure"] for row in rows}) > 1
    shown = headings(rows, columns)
    header = ["method", *["structure"] * several, "n", "missed", "false"]
    lines = [header + list(shown.values())]
    for method, structures in summary["methods"].items():
        for structure, cell in structures.items():
            values = [cell["metrics"][name] for name in shown]
            counts = [str(cell[count]) for count in ("n", "n_missed", "n_false")]
            means, intervals = zip(*map(spread, values))
            lines += [[method, *[structure] * several, *counts, *means], [*[""] * len(header), *intervals]]

    text = aligned(lines, words=1 + several)
    return "\n".join([text, *NOTES, *(comparisons(summary) if "DSC" in columns else [])])


def headings(rows, columns=COLUMNS):
    """{metric: what stands above its column} of the rows' metrics, `columns` without their units."""
    found = [name for name in _metric_names(rows) if name.rpartition("_")[0] in columns]
    titles = ["{0[0]} ({0[2]})".format(name.rpartition("_")) for name in found]
    return dict(zip(found, (title.replace("_", " ").replace("percent", "%") for title in titles)))


def aligned(lines, words=1):
    """Lines of cells as plain text: the first between rules, the first `words` columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = []
    for line in lines:
        cells = [cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        text.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, text))
    return "\n".join([text[0], rule, *text[1:], rule])


def p_value(p):
    """A p value in four digits."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def spread(values):
    """("mean ± SD", "[interval]") of a `metrics.summarize`; one case has a value but no spread, none has neither."""
    mean = ("-", "{mean:.2f}", "{mean:.2f} ± {sd:.2f}")[min(values["n"], 2)].format_map(values)
    return mean, "[{ci_low:.2f}, {ci_high:.2f}]".format_map(values) if values["n"] > 1 else ""


def comparisons(summary):
    """Sentences that compare the DSC of two methods, one for each of "paired" of a `summarize`."""
    several = len({name for structures in summary["methods"].values() for name in structures}) > 1
    text = []
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
    return text


def dice_table(rows):
    """The Dice scores as plain text, a column per structure, within 150 columns for seven of them.

    A block per method has mean, SD, minimum and maximum in percent over the n cases where the score is finite, and how
    many times the structure was predicted where the truth has none. Avg. is the mean over the structures of a case, and
    its statistics are over cases. Below, every method is compared with every method before it on the cases of both
    (Wilcoxon signed-rank test), Avg. on the structures of both.

    Raises:
      ValueError: two rows have the same method, structure and case.
    """
    methods = _by_method(rows)
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    dice = {  # {method: {structure: {case: percent}}}
        method: {
            name: {case: row["DSC_percent"] for case, row in found.get(name, {}).items() if _defined(row)}
            for name in structures
        }
        for method, found in methods.items()
    }

    # Lines of one word are headings.
    lines = [["Dice (%)", *structures, "Avg."]]
    for method, columns in dice.items():
        values = [metrics.summarize(list(cases.values())) for cases in _with_average(columns)]
        lines.append([method])
        for name in ("mean", "sd", "min", "max"):
            lines.append([name.replace("sd", "SD"), *("-" if np.isnan(v[name]) else f"{v[name]:.2f}" for v in values)])
        lines.append(["n", *(str(v["n"]) for v in values)])
        lines.append(["false", *(str(_n_false(methods[method].get(name, {}))) for name in structures), ""])
    pairs = [(new, old) for i, new in enumerate(dice) for old in list(dice)[:i]]
    if pairs:
        lines.append(["Wilcoxon signed-rank test, two-sided"])
    for new, old in pairs:
        shared = {name: [case for case in dice[new][name] if case in dice[old][name]] for name in structures}
        sides = [
            _with_average({name: {case: dice[side][name][case] for case in shared[name]} for name in structures})
            for side in (new, old)
        ]
        tests = [metrics.paired(list(a.values()), list(b.values())) for a, b in zip(*sides)]
        average = "Avg. {mean_difference:+.2f} % [{ci_low:+.2f}, {ci_high:+.2f}], {n} pairs".format_map(tests[-1])
        lines.append([f"{new} against {old}: {average if tests[-1]['n'] else 'no case in common'}"])
        lines.append(["change", *(f"{t['mean_difference']:+.2f}" if t["n"] else "-" for t in tests)])
        lines.append(["p", *(("<0.0001" if t["p"] < 1e-4 else f"{t['p']:.4f}") if t["n"] else "-" for t in tests)])

    columns = list(zip(*(line for line in lines if len(line) > 1)))
    widths = [max(map(len, column)) for column in columns]
    widths[0] += 2  # the indent below a heading
    text = []
    for line in lines:
        first = line[0] if line is lines[0] or len(line) == 1 else f"  {line[0]}"
        cells = [word.rjust(width) for word, width in zip(line[1:], widths[1:])]
        text.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    rule = "-" * max(map(len, text))
    return "\n".join(
        [
            text[0],
            rule,
            *text[1:],
            rule,
            "n: cases whose truth has the structure; false: cases whose prediction has it and whose truth has not",
            "Avg.: mean over the structures of a case, then over cases; in brackets the 95 % interval of the change",
        ]
    )


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
    labels = {"prediction": prediction} if truth is None else {"truth": truth, "prediction": prediction}
    labels = {name: np.asarray(label) for name, label in labels.items()}
    if any(label.shape != image.shape for label in labels.values()):
        raise ValueError(f"image {image.shape} and labels {[v.shape for v in labels.values()]} need one shape.")
    values = list(structures.values())
    if truth is not None:
        inside = [value for value in values if np.any(labels["truth"] == value)] or values
        dsc = 100 * np.mean([metrics.dice(*(label == value for label in labels.values())) for value in inside])
        title = f"{title}   {'mean ' * (len(values) > 1)}DSC {dsc:.1f} %"

    # Rows of panels, each with its outlines: (name, colour, style, label value, labels).
    if len(structures) == 1:
        colours = {"truth": TRUTH, "prediction": PREDICTION}
        rows = {"": [(name, colours[name], "solid", values[0], label) for name, label in labels.items()]}
    else:
        look = [(PALETTE[i % len(PALETTE)], LINES[i // len(PALETTE) % len(LINES)]) for i in range(len(values))]
        rows = {
            name: [(structure, *look[i], value, label) for i, (structure, value) in enumerate(structures.items())]
            for name, label in labels.items()
        }
    spacing = np.ones(image.ndim) if spacing is None else np.asarray(spacing, float)
    objects = [found for label in labels.values() if (found := np.isin(label, values)).any()]
    centre = [np.mean(at) for at in np.nonzero(objects[0])] if objects else [n // 2 for n in image.shape]
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
            ax.imshow(image[index], cmap="gray", vmin=low, vmax=high, aspect=voxel[0] / voxel[1], origin=origin)
            for _, colour, style, value, label in outlines:
                mask = label[index] == value
                if mask.any():
                    # Filled, as the outline of a neighbour may hide that of a thin vessel.
                    _outline(ax, mask, colour, style, filled=len(structures) > 1)
            ax.set_axis_off()
            if image.ndim == 3:
                ax.set_title(f"{row}  {'zyx'[axis]} = {centre[axis]}".strip(), color=GREY, fontsize=9)
            else:
                ax.set_title(row, color=GREY, fontsize=9)
    figure.suptitle(title, color="white", fontsize=12)
    for name, colour, style, _, _ in next(iter(rows.values())):
        grid[0, 0].plot([], [], color=colour, linestyle=style, label=name)
    columns = int(size[0] / 1.6)  # inches for a name
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, labelcolor=GREY, fontsize=9)
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
    found = {method: metrics.repeatability(values, groups) for method, values in values_by_method.items()}
    spread = [list(one["sd"].values()) for one in found.values()]
    if not any(spread):
        raise ValueError("no group has a second scan; expected at least one.")
    figure = Figure(figsize=(2.5 + 2 * len(found), 5), layout="constrained")
    ax = figure.subplots()
    names = [
        f"{method}\nmean {{mean:.2f}}\n{{min:.2f}} to {{max:.2f}}".format_map(one) for method, one in found.items()
    ]
    ax.boxplot(spread, widths=0.5, showfliers=False, medianprops={"color": PALETTE[5]})
    ax.set_xticks(range(1, len(found) + 1), names)
    for number, values in enumerate(spread, start=1):
        aside = np.linspace(-0.12, 0.12, len(values))  # a group stands at the same place in every box
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
            ax.plot(number, column.get(line, np.full(len(epochs), np.nan)), marker=".", label=line.replace("_", " "))
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
    ax.contour(right, down, np.pad(mask, 1), levels=[0.5], colors=colour, linewidths=1.6, linestyles=style)
    if filled:
        ax.contourf(right, down, np.pad(mask, 1), levels=[0.5, 1], colors=colour, alpha=0.3)


def _by_method(rows):
    """{method: {structure: {case: row}}} in the order of the rows."""
    methods = {}
    for row in rows:
        cases = methods.setdefault(row["method"], {}).setdefault(row["structure"], {})
        if row["case"] in cases:
            raise ValueError(f"two rows for {row['method']}, {row['structure']}, {row['case']}; expected one.")
        cases[row["case"]] = row
    return methods


def _with_average(columns):
    """[{case: percent}] of every structure, and at the end of the mean over the structures that a case has."""
    scores = {}
    for cases in columns.values():
        for case, value in cases.items():
            scores.setdefault(case, []).append(value)
    return [*columns.values(), {case: float(np.mean(values)) for case, values in scores.items()}]


def _defined(row):
    return math.isfinite(row["DSC_percent"])


def _n_false(cases):
    """How many of the rows {case: row} are of a prediction without truth."""
    return sum(truth == 0 and size > 0 for size, truth in map(_sizes, cases.values()))


def _metric_names(rows):
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name not in LABELS]


def size_of(row):
    """Name of a row's size: volume_mL, or in 2D area_mm2 or area_pixel; StopIteration if it has none."""
    return next(name for name in row if name in ("volume_mL", "area_mm2", "area_pixel"))


def _sizes(row):
    """Size of the prediction and of the truth."""
    name = size_of(row)
    return row[name], row[f"truth_{name}"]


def _finite(value):
    """The same nested dicts and lists with None in place of every NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
