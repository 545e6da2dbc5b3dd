"""Table 1 and figure 5b of online adversarial rendering (Yang et al. 2018): a whole corpus of another scanner.

  python eval/renderer_tables.py --runs=runs/t2t,runs/orig,runs/s2t_sp,runs/s2t_p,runs/renderer --output=tables
  python eval/renderer_tables.py --runs=runs/orig,runs/renderer --corpus=my_other_scanner --cases=20 --output=tables

Runs of one variant with other seeds are pooled. Every image is rendered from the trained weights; the kept iteration, the
first (the trained weights as they are) and the best one, which only the truth can tell, are rows of their own. Images that
were scored stay scored: the same command goes on where it was stopped. Writes scores.csv, cases.csv, summary.json,
iterations.csv, table.txt, a curve a variant and a strip an image.
"""

import csv
import dataclasses
import functools
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

from tf_autoctx import biometry, errors, files, flag_types, metrics, plots, report
from tf_autoctx.data import datasets, images
from tf_autoctx.systems import online, renderer, self_play
from tf_autoctx.training import runs

COLUMNS = ("DSC", "Conf", "Adb", "Hdb", "Jacc", "precision", "recall")
ORDER = tuple(reversed(renderer.VARIANTS))

FLAGS = flags.FLAGS
flags.DEFINE_list("runs", None, "Finished run folders of train_renderer.py.", required=True)
flags.register_validator("runs", bool, "expected at least one run folder")
flags.DEFINE_string(
    "corpus", "", "Images of another scanner, with labels. Empty: each run's own phantoms."
)
flags.DEFINE_string("output", None, "Folder for the tables; what is there goes on.", required=True)
flag_types.define_integers(
    "foreground", None, "Label values that make up the head. Default: as in the run.", least=1
)
flags.DEFINE_integer("cases", 0, "Images to score, drawn at random; 0: all.", 0)
flags.DEFINE_integer(
    "seed", 0, "Of the images that are drawn, and of the source images of online rendering.", 0
)
flags.DEFINE_integer("iterations", online.ITERATIONS, "Of online rendering.", 0)
flags.DEFINE_string(
    "pixel_sizes",
    "",
    "CSV file with the columns name,millimetres_per_pixel, for distances and biometry in mm too.",
)


def corpus_of(run, config):
    """The images to score and how to read them: test cases with a label, or all cases where there are none."""
    source = FLAGS.corpus or pathlib.Path(run) / "phantoms" / "target"
    found = datasets.load(source, FLAGS.seed, validation_fraction=0, training=False)
    cases = [case for case in found.test if case.label]
    if len(cases) < len(found.test):
        logging.warning(
            "%s: %d test images have no label and are not scored.",
            source,
            len(found.test) - len(cases),
        )
    if not cases:
        cases = [*found.train, *found.validation]
        if datasets.fingerprint(found) == config["data_fingerprint"]:
            logging.warning("%s: these images trained %s; the scores flatter.", source, run)
    if not cases:
        raise errors.UserError(f"{source}: holds no image with a label; expected some to score.")
    if FLAGS.cases and FLAGS.cases < len(cases):
        drawn = np.random.default_rng(FLAGS.seed).choice(len(cases), FLAGS.cases, replace=False)
        cases = [cases[i] for i in sorted(drawn)]
    foreground = FLAGS.foreground or config["flags"]["foreground"]
    return cases, functools.partial(
        datasets.read_case, foreground=foreground, labels=found.labels, dimensions=2
    )


def pixel_sizes():
    """{case: mm} of `--pixel_sizes`; a row without a value says nothing."""
    if not FLAGS.pixel_sizes:
        return {}
    try:
        with open(FLAGS.pixel_sizes, newline="", encoding="utf-8-sig") as file:
            rows = [(row["name"], row["millimetres_per_pixel"]) for row in csv.DictReader(file)]
        return {name: float(text) for name, text in rows if text.strip()}
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise errors.UserError(
            f"{FLAGS.pixel_sizes}: {error}; expected a CSV file with name,millimetres_per_pixel."
        ) from None


@dataclasses.dataclass(frozen=True)
class Scored:
    """A finished run: its folder, variant, seed, and [{"case", "group", "kept", "scores" and "agreement" of every
    iteration}], one an image."""

    folder: str
    variant: str
    seed: int
    images: list


def rendering_of(folder, config):
    """(system, preprocessed image (height, width, 1) -> [`online.Iteration`]) of a finished run.

    Raises:
      UserError: it is no such run, or not finished.
    """
    if config["system"] != renderer.NAME:
        raise errors.UserError(
            f"{folder}: a run of {config['system']!r}; expected one of {renderer.NAME!r}."
        )
    try:
        system = runs.configured(renderer.Renderer, config["flags"])
        if system.renders and FLAGS.iterations:
            return system, online.of_run(
                folder, system, config["flags"], FLAGS.iterations, FLAGS.seed
            )
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"{folder}/config.json: {error} is missing or wrong; expected the flags of a run."
        ) from error
    answer = self_play.graph(system, self_play.finished(folder))

    def once(x):
        found = answer(x[None])
        return [
            online.Iteration(found["rendered"][0].numpy(), found["probability"][0].numpy(), 1.0)
        ]

    return system, once


def score_run(folder, config, system, render, sizes):
    """`Scored` of a run: every image once and for all, unless something that decides its scores has changed."""
    output, name = pathlib.Path(FLAGS.output), pathlib.Path(folder).name
    cases, read = corpus_of(folder, config)
    made_with = {
        "networks": [
            datasets.digest(path) for path in sorted((pathlib.Path(folder) / "networks").iterdir())
        ],
        "flags": {flag: FLAGS[flag].value for flag in ("iterations", "seed", "foreground")},
    }
    print(folder)
    found, progress = [], keras.utils.Progbar(len(cases), unit_name="image")
    for case in cases:
        file, size = output / "cases" / name / f"{case.name}.json", sizes.get(case.name)
        settings = made_with | {
            "files": [datasets.digest(case.image), datasets.digest(case.label)],
            "mm": size,
        }
        if not file.exists() or json.loads(file.read_text())["settings"] != settings:
            image, truth = read(case)
            pixels = images.array(image).astype(np.float32)
            iterations = render(system.preprocess(tf.constant(pixels[None, ..., None]))[0])
            kept = online.kept(iterations)
            shown = [
                {
                    key: np.asarray(x)[0, ..., 0]
                    for key, x in system.postprocess(one.answer(), pixels.shape).items()
                }
                for one in iterations
            ]
            spacing = (size,) * 2 if size else images.millimetres(case.image, image)
            scores = [metrics.compare(one["label"], truth) for one in shown]
            if spacing:
                for score, one in zip(scores, shown):
                    pair = one["label"], truth, spacing
                    score |= metrics.compare(*pair) | biometry.compare(*pair)
            plots.strip(
                output / "strips" / name / f"{case.name}.png",
                pixels,
                shown,
                kept,
                case.name,
                truth=truth,
            )
            with files.replacing(file) as path:
                entry = {"settings": settings, "kept": kept, "scores": scores}
                path.write_text(
                    json.dumps(entry | {"agreement": [one.agreement for one in iterations]})
                )
        found.append({"case": case.name, "group": case.group, **json.loads(file.read_text())})
        progress.add(1)
    return Scored(folder, system.variant, config["seed"], found)


def rows_of(scored, prefix):
    """Rows of `report` of one run: the kept iteration, and where there are several, the first and the best one."""
    rows = []
    for entry in scored.images:
        scores = entry["scores"]
        chosen = {scored.variant: scores[entry["kept"]]}
        if len(scores) > 1:
            chosen[f"{scored.variant}, iteration 0"] = scores[0]
            chosen[f"{scored.variant}, best iteration"] = max(
                scores, key=lambda score: score["DSC_percent"]
            )
        label = {
            "case": prefix + entry["case"],
            "group": entry["group"],
            "structure": renderer.STRUCTURE,
        }
        rows += [
            {"system": renderer.NAME, "method": method, **label, **score}
            for method, score in chosen.items()
        ]
    return rows


def pairs_of(methods):
    """What is compared: every variant with those before it in the table, and with its own iteration 0."""
    kept = [method for method in methods if method in ORDER]
    pairs = [(new, old) for i, new in enumerate(kept) for old in kept[:i]]
    return pairs + [
        (method, f"{method}, iteration 0") for method in kept if f"{method}, iteration 0" in methods
    ]


def main(_):
    output, sizes = pathlib.Path(FLAGS.output), pixel_sizes()
    if len({pathlib.Path(folder).name for folder in FLAGS.runs}) < len(FLAGS.runs):
        raise errors.UserError(
            f"--runs={','.join(FLAGS.runs)}: expected folders of different names."
        )
    configs = {folder: runs.load_config(folder) for folder in FLAGS.runs}
    ready = {folder: rendering_of(folder, config) for folder, config in configs.items()}
    made = [(system.variant, configs[folder]["seed"]) for folder, (system, _) in ready.items()]
    if len(set(made)) < len(made):
        raise errors.UserError(
            f"--runs={','.join(FLAGS.runs)}: two have the same variant and seed; give one of them."
        )

    scored = [score_run(folder, configs[folder], *ready[folder], sizes) for folder in FLAGS.runs]
    scored.sort(key=lambda run: ORDER.index(run.variant))
    several = len({run.seed for run in scored}) > 1
    rows, lines = [], []
    for run in scored:
        prefix = f"seed {run.seed}/" if several else ""
        rows += rows_of(run, prefix)
        for entry in run.images:
            for number, (score, agreement) in enumerate(zip(entry["scores"], entry["agreement"])):
                lines.append(
                    [
                        run.folder,
                        run.variant,
                        prefix + entry["case"],
                        number,
                        score["DSC_percent"],
                        agreement,
                    ]
                )
    for variant in dict.fromkeys(run.variant for run in scored if len(run.images[0]["scores"]) > 1):
        every = [
            entry["scores"] for run in scored if run.variant == variant for entry in run.images
        ]
        curves = [[score["DSC_percent"] for score in scores] for scores in every]
        plots.gains(output / f"gains_{variant}.png", curves, variant)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rows.sort(key=lambda row: methods.index(row["method"]))
    pairs = pairs_of(methods)
    report.write(rows, output, pairs)
    with (
        files.replacing(output / "iterations.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows(
            [["run", "variant", "case", "iteration", "DSC_percent", "agreement"], *lines]
        )
    text = report.table(rows, COLUMNS, pairs)
    with files.replacing(output / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
