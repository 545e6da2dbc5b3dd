"""Compares evaluations on the cases that they have in common, by paired tests of every metric.

  python eval/compare.py --evaluations=runs/a/evaluation,runs/b/evaluation --output=runs/a_against_b

Any folder that a training run, eval/score.py or a table wrote a scores.csv into is an evaluation. Every method of one
is compared with every method of those before it: mean difference, its bootstrap 95 % interval, Wilcoxon's p, and
Holm's p, corrected for the number of metrics. Methods of the same name get that of their run before it. Writes
comparison.csv and table.txt and prints the table.
"""

import collections
import csv
import itertools
import math
import pathlib

import numpy as np
from absl import app, flags

from tf_autoctx import errors, files, metrics, report

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "evaluations", None, "Folders that hold a scores.csv, two or more.", required=True
)
flags.register_validator(
    "evaluations", lambda folders: len(folders) > 1, "expected at least two folders"
)
flags.DEFINE_string("output", None, "Folder for comparison.csv and table.txt.", required=True)


def load(folders):
    """{folder: rows of `report`}, no method in two folders.

    Raises:
      UserError: no scores.csv; two folders of the same name have a method of the same name.
    """
    found = {folder: report.read(folder) for folder in folders}
    having = collections.Counter(
        name for rows in found.values() for name in {row["method"] for row in rows}
    )
    for folder, rows in found.items():
        path = pathlib.Path(folder).resolve()
        run = path.parent.name if path.name == "evaluation" else path.name
        for row in rows:
            if having[row["method"]] > 1:
                row["method"] = f"{run}, {row['method']}"
    names = [name for rows in found.values() for name in {row["method"] for row in rows}]
    if len(found) < len(folders) or len(set(names)) < len(names):
        raise errors.UserError(
            f"--evaluations={','.join(folders)}: expected folders of runs with different names."
        )
    return found


def compare(found):
    """Tests of every pair of methods from two folders, structure and metric.

    Args:
      found: {folder: rows of `report`}.

    Returns:
      A list of dicts: "method", "against", "structure", "metric", `metrics.paired`, and "p_holm", corrected for the
      metrics of the same structure and pair.

    Raises:
      UserError: two folders have no case in common, or other ground truth for one.
    """
    pairs = []
    for old, new in itertools.combinations(found, 2):
        before, after = (
            {
                (row["structure"], row["case"]): row
                for row in found[folder]
                if math.isfinite(row["DSC_percent"])
            }
            for folder in (old, new)
        )
        both = [(*key, before[key], after[key]) for key in before if key in after]
        if not both:
            raise errors.UserError(
                f"{old}, {new}: no case in common; expected evaluations of the same cases."
            )
        for structure, case, a, b in both:
            for name in a:
                if (
                    name.startswith("truth_")
                    and name in b
                    and not np.isclose(a[name], b[name], 1e-3, equal_nan=True)
                ):
                    raise errors.UserError(
                        f"{new}, {case}, {structure}: {name} is {b[name]:.6g}, in {old} {a[name]:.6g}; expected "
                        "evaluations against the same ground truth."
                    )
        pairs += itertools.product(
            *(dict.fromkeys(row["method"] for row in found[folder]) for folder in (new, old))
        )
    lines = []
    for pair in report.summarize([row for rows in found.values() for row in rows], pairs)["paired"]:
        tests = pair.pop("metrics")
        # A measurement such as a volume is no better for being larger; its error is compared.
        names = [
            name
            for name, test in tests.items()
            if test["n"] and not name.startswith("truth_") and f"truth_{name}" not in tests
        ]
        corrected = metrics.holm([tests[name]["p"] for name in names])
        lines += [
            pair | {"metric": name, **tests[name], "p_holm": p} for name, p in zip(names, corrected)
        ]
    return lines


def table(lines):
    """The same as plain text, a block a pair of methods and structure."""
    header = ["", "n", "difference", "95 % interval", "p", "p (Holm)"]
    blocks = {}
    for line in lines:
        p = ("<0.0001" if line[name] < 1e-4 else f"{line[name]:.4f}" for name in ("p", "p_holm"))
        interval = "[{ci_low:+.3f}, {ci_high:+.3f}]".format_map(line)
        words = [
            f"  {line['metric']}",
            str(line["n"]),
            f"{line['mean_difference']:+.3f}",
            interval,
            *p,
        ]
        blocks.setdefault("{method} against {against}, {structure}".format_map(line), []).append(
            words
        )
    widths = [
        max(map(len, column))
        for column in zip(header, *(words for block in blocks.values() for words in block))
    ]
    aligned = lambda words: "  ".join(
        [words[0].ljust(widths[0]), *map(str.rjust, words[1:], widths[1:])]
    )
    text = [aligned(header)]
    for title, block in blocks.items():
        text += [title, *map(aligned, block)]
    rule = "-" * max(map(len, text))
    return "\n".join(
        [
            text[0],
            rule,
            *text[1:],
            rule,
            "difference: mean over the n cases of both where both values are finite, and its bootstrap 95 % interval",
            "p: Wilcoxon signed-rank test, two-sided; Holm: corrected for the metrics of the block",
        ]
    )


def main(_):
    lines = compare(load(FLAGS.evaluations))
    text, output = table(lines), pathlib.Path(FLAGS.output)
    with (
        files.replacing(output / "comparison.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        rows.writeheader()
        rows.writerows(lines)
    with files.replacing(output / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
