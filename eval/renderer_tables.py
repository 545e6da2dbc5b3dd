"""Table 1 and figure 5b of online adversarial rendering (Yang et al. 2018): a whole corpus of another scanner.

  python eval/renderer_tables.py --runs=runs/t2t,runs/orig,runs/s2t_sp,runs/s2t_p,runs/renderer --output=tables
  python eval/renderer_tables.py --runs=runs/orig,runs/renderer --corpus=my_other_scanner --cases=20 --output=tables

Runs of one variant with other seeds are pooled. Every image is rendered from the trained weights; the kept iteration, the
first (the trained weights as they are) and the best one, which only the truth can tell, are rows of their own. Images that
were scored stay scored: the same command goes on where it was stopped. Writes cases.csv, summary.json, iterations.csv,
table.txt, a curve a run and a strip an image.
"""

import csv
import functools
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from tf_autoctx import errors, files, metrics, report
from tf_autoctx.data import datasets, images
from tf_autoctx.systems import online, renderer, self_play
from tf_autoctx.training import devices, runs

COLUMNS = ("DSC", "Conf", "Adb", "Hdb", "Jacc", "precision", "recall")
ORDER = ("Orig-T2T", "Orig-S2T", "S2T-sp", "S2T-p", "S2T")

FLAGS = flags.FLAGS
flags.DEFINE_list("runs", None, "Finished run folders of train_renderer.py.", required=True)
flags.register_validator("runs", bool, "expected at least one run folder")
flags.DEFINE_string("corpus", "", "Images of another scanner, with labels. Empty: each run's own phantoms.")
flags.DEFINE_string("output", None, "Folder for the tables; what is there goes on.", required=True)
flags.DEFINE_integer("cases", 0, "Images to score, drawn at random; 0: all.", 0)
flags.DEFINE_integer("seed", 0, "Of the images that are drawn, and of the source images of online rendering.", 0)
flags.DEFINE_integer("iterations", online.ITERATIONS, "Of online rendering.", 0)
flags.DEFINE_string("pixel_sizes", "", "CSV file with the columns name,millimetres_per_pixel, for distances in mm too.")
flags.DEFINE_enum("precision", "auto", ["auto", "float32", "mixed_bfloat16"], "Of online rendering.")


def corpus_of(run):
    """The images to score: test cases with a label, or all cases where there are none; `--cases` of them."""
    source = FLAGS.corpus or pathlib.Path(run) / "phantoms" / "target"
    found = datasets.load(source, FLAGS.seed, validation_fraction=0, training=False)
    cases = [case for case in found.test if case.label] or [*found.train, *found.validation]
    if not cases:
        raise errors.UserError(f"{source}: holds no image with a label; expected some to score.")
    if FLAGS.cases and FLAGS.cases < len(cases):
        drawn = np.random.default_rng(FLAGS.seed).choice(len(cases), FLAGS.cases, replace=False)
        cases = [cases[i] for i in sorted(drawn)]
    return cases, functools.partial(datasets.read_case, labels=found.labels, dimensions=2)


def pixel_sizes():
    """{case: mm} of `--pixel_sizes`."""
    if not FLAGS.pixel_sizes:
        return {}
    try:
        with open(FLAGS.pixel_sizes, newline="", encoding="utf-8-sig") as file:
            return {row["name"]: float(row["millimetres_per_pixel"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"{FLAGS.pixel_sizes}: {error}; expected a CSV file with name,millimetres_per_pixel."
        ) from None


def score_run(folder, sizes, output):
    """Scores all images of a corpus with one run, each image once and for all.

    Returns:
      [{"case", "kept", "iterations": [{metric: value}, ...], "agreement": [...]}], one an image.
    """
    config = runs.load_config(folder)
    if config["system"] != renderer.NAME:
        raise errors.UserError(f"{folder}: a run of {config['system']!r}; expected one of {renderer.NAME!r}.")
    system = runs.configured(renderer.Renderer, config["flags"])
    cases, read = corpus_of(folder)
    iterations = FLAGS.iterations if system.renders else 0
    settings = {"run": str(folder), "corpus": FLAGS.corpus, "iterations": iterations, "seed": FLAGS.seed}
    networks = self_play.finished(folder)
    if iterations:
        render = online.of_run(folder, config, iterations, FLAGS.seed)
    else:
        answer = tf.function(lambda image: system.answer(networks, image))

    def passes(x):
        if iterations:
            return render(x)
        found = answer(x[None])
        return [online.Iteration(found["rendered"][0].numpy(), found["probability"][0].numpy(), 1.0)]

    print(folder)
    found, progress = [], keras.utils.Progbar(len(cases), unit_name="image")
    for case in cases:
        file = output / "cases" / pathlib.Path(folder).name / f"{case.name}.json"
        if not file.exists() or json.loads(file.read_text())["settings"] != settings:
            image, truth = read(case)
            pixels = images.array(image).astype(np.float32)
            done = passes(system.preprocess(tf.constant(pixels[None, ..., None]))[0])
            kept = online.kept(done)
            shown = [
                {name: np.asarray(x)[0, ..., 0] for name, x in system.postprocess(one.answer(), pixels.shape).items()}
                for one in done
            ]
            scores = []
            for one in shown:
                scores.append(metrics.compare(one["label"], truth, images.millimetres(case.image, image)))
                if case.name in sizes:
                    scores[-1] |= metrics.compare(one["label"], truth, (sizes[case.name],) * 2)
            strip = output / "strips" / pathlib.Path(folder).name / f"{case.name}.png"
            report.strip(strip, pixels, shown, kept, case.name, truth=truth)
            with files.replacing(file) as path:
                entry = {"settings": settings, "kept": kept, "scores": scores}
                path.write_text(json.dumps(entry | {"agreement": [one.agreement for one in done]}))
        found.append({"case": case.name, "group": case.group, **json.loads(file.read_text())})
        progress.add(1)
    return config, found


def rows_of(variant, prefix, found):
    """Rows of `report` of one run: the kept iteration, and where there are several, the first and the best one."""
    rows = []
    for entry in found:
        scores = entry["scores"]
        chosen = {variant: scores[entry["kept"]]}
        if len(scores) > 1:
            best = max(scores, key=lambda score: score["DSC_percent"])
            chosen |= {f"{variant}, iteration 0": scores[0], f"{variant}, best iteration": best}
        label = {"case": prefix + entry["case"], "group": entry["group"], "structure": renderer.STRUCTURE}
        rows += [{"method": method, **label, **score} for method, score in chosen.items()]
    return rows


def main(_):
    devices.set_up(FLAGS.precision, FLAGS.seed)
    output, sizes = pathlib.Path(FLAGS.output), pixel_sizes()
    names = [pathlib.Path(folder).name for folder in FLAGS.runs]
    if len(set(names)) < len(names):
        raise errors.UserError(f"--runs={','.join(FLAGS.runs)}: expected folders of different names.")
    scored = [(folder, *score_run(folder, sizes, output)) for folder in FLAGS.runs]
    scored.sort(key=lambda run: ORDER.index(run[1]["flags"]["variant"]))
    made = [(config["flags"]["variant"], config["seed"]) for _, config, _ in scored]
    if len(set(made)) < len(made):
        raise errors.UserError(f"--runs={','.join(FLAGS.runs)}: two have the same variant and seed; give one of them.")
    several = len({config["seed"] for _, config, _ in scored}) > 1
    rows, lines = [], []
    for folder, config, found in scored:
        variant, prefix = config["flags"]["variant"], f"seed {config['seed']}/" if several else ""
        rows += rows_of(variant, prefix, found)
        for entry in found:
            for number, (score, agreement) in enumerate(zip(entry["scores"], entry["agreement"])):
                lines.append([folder, variant, prefix + entry["case"], number, score["DSC_percent"], agreement])
        curves = [[score["DSC_percent"] for score in entry["scores"]] for entry in found]
        if len(curves[0]) > 1:
            report.gains(output / f"{pathlib.Path(folder).name}_gains.png", curves, variant)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    rows.sort(key=lambda row: methods.index(row["method"]))
    report.write(rows, output)
    with files.replacing(output / "iterations.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["run", "variant", "case", "iteration", "DSC_percent", "agreement"], *lines])
    text = report.table(rows, COLUMNS)
    with files.replacing(output / "table.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
