"""How the embryo cascade is trained: VNet I, then VNets II and III on what it found, then all three."""

import pathlib

import numpy as np
import tensorflow as tf

from tf_autoctx import export, losses, metrics
from tf_autoctx.data import datasets, pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.systems import caching, embryo, stages
from tf_autoctx.training import runs

TAKEN_OVER = {"initial": (), "refine": ("vnet_1",), "end_to_end": ("vnet_1", "vnet_2", "vnet_3")}


def prepared(system):
    """A `prepare` of `caching.cached`: the preprocessed image, and the label as classes 0, 1 (body), 2 (ventricle)."""

    def prepare(case, voxels, label):
        classes = sum(
            (label == value).astype(np.uint8) * k for k, value in enumerate(system.labels, start=1)
        )
        return {"image": system.preprocess(tf.constant(voxels))[0], "label": classes[0]}

    return prepare


def check_structures(system, training):
    """Warns of a structure that no training case has.

    Raises:
      UserError: the ventricles are larger than the bodies: the two label values are exchanged.
    """
    counts = sum(
        np.bincount(pipeline.stored(entry["label"], "label").numpy().ravel(), minlength=3)
        for entry in training
    )
    caching.warn_of_missing(
        system.labels, [value for value, count in zip(system.labels, counts[1:]) if count]
    )
    if counts[2] > counts[1] > 0:
        body, ventricle = system.labels
        raise UserError(
            f"--foreground: the ventricle, {ventricle}, has more voxels than the body, {body}; expected the body's value and "
            "then the ventricle's."
        )


def configured(config):
    """The `embryo.Embryo` of a run's config.json.

    Raises:
      AttributeError, KeyError, TypeError, ValueError: something is missing or wrong.
    """
    return runs.configured(embryo.Embryo, config["flags"], labels=runs.labels(config))


def run_of(folder):
    """(config.json, `embryo.Embryo`) of a run of `train_embryo.py`.

    Raises:
      UserError: no such run; its configuration lacks something.
    """
    config = runs.load_config(folder)
    if config["system"] != embryo.NAME:
        raise UserError(
            f"{folder}: a run of {config['system']!r}; expected one of {embryo.NAME!r}."
        )
    try:
        return config, configured(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}/config.json: {error} is missing or wrong; expected the flags of a run."
        ) from error


def cases_of(folder, config):
    """`datasets.Dataset` of the very files that a run of `train_embryo.py` was trained on.

    Raises:
      UserError: they are gone or have changed.
    """
    given = config["flags"]
    source = given["data_dir"] or pathlib.Path(folder) / "phantoms"
    cases = datasets.load(source, given["seed"], given["validation_fraction"])
    if datasets.fingerprint(cases) != config["data_fingerprint"]:
        raise UserError(
            f"{source}: other data than those of {folder}; expected the files that it was trained on."
        )
    return cases


def initial_of(source, system, fingerprint):
    """The network file of the finished initial stage of the run folder `source`.

    Raises:
      UserError: `source` is no such run, or its VNet I or its data are others.
    """
    config = runs.load_config(source)
    if config["system"] != embryo.NAME or config["data_fingerprint"] != fingerprint:
        raise UserError(
            f"--initial_from={source}: a run of another system or other data; expected those of this run."
        )
    for name in ("low_size", "base_filters", "depth", "kernel", "normalization"):
        if config["flags"].get(name) != getattr(system, name):
            raise UserError(
                f"--initial_from={source}: made with --{name}={config['flags'].get(name)}, now {getattr(system, name)}; "
                "expected the same."
            )
    file = pathlib.Path(source) / "initial" / "model.keras"
    if not file.exists():
        raise UserError(
            f"{file}: this stage is not finished; finish it, or leave --initial_from out."
        )
    return file


def train(stage, system, training, validation, run, strategy, settings, motion):
    """Trains one stage from the networks of the one before, or goes on with it, or finds it finished.

    Args:
      stage: of `embryo.STAGES`.
      system: `embryo.Embryo`.
      training, validation: files of `caching.cached`; validation may be empty.
      run: folder of the run, with a folder a stage.
      strategy, settings: see `stages.train`.
      motion: `augment.RigidMotion`.

    Returns:
      The finished network in float32.

    Raises:
      UserError: see `stages.train`; the stage before is not finished; volumes that do not stack to a batch.
    """
    run = pathlib.Path(run)
    if network := stages.finished(run / stage):
        return network
    number = embryo.STAGES.index(stage)
    before = embryo.STAGES[number - 1] if number else None
    below = stages.finished(run / before) if before else None
    if before and not below:
        raise UserError(
            f"{run / before / 'model.keras'}: this stage is not finished; run --stage={before} (or all) before {stage}."
        )
    if settings.batch_size > 1:
        shapes = {tuple(pipeline.stored(entry["label"], "label").shape[:3]) for entry in training}
        pipeline.require_one_shape(shapes, settings.batch_size)
    dice = losses.SquaredDiceLoss()

    def build():
        network = system.network(stage)
        for name in TAKEN_OVER[stage]:
            network.get_layer(name).set_weights(below.get_layer(name).get_weights())
        if stage == "refine":
            network.get_layer("vnet_1").trainable = False
        return network

    def sample_losses(network, batch):
        answer, label = network(batch["image"], training=True), batch["label"]
        if stage == "initial":
            return dice(
                losses.one_hot(system.low_label(label), answer["initial"]), answer["initial"]
            )
        return dice(label == 1, answer["body"]) + dice(label == 2, answer["ventricle"])

    def score(network):
        segment = graph(system, network)

        def dice_of(sample):
            answer, truth = (
                segment(sample["image"][None])[1][0, ..., 0].numpy(),
                sample["label"][..., 0].numpy(),
            )
            return metrics.mean_dice(answer, truth)

        return dice_of

    return stages.train(
        run / stage,
        build,
        sample_losses,
        [{name: entry[name] for name in ("image", "label", "spacing")} for entry in training],
        motion,
        validation,
        score,
        seed=settings.seed * 1000 + number,
        strategy=strategy,
        settings=settings,
    )


def finished(run):
    """The finished stages of a run folder, in their order.

    Raises:
      UserError: there is none.
    """
    found = [
        stage for stage in embryo.STAGES if (pathlib.Path(run) / stage / "model.keras").exists()
    ]
    if not found:
        raise UserError(
            f"{run}: no stage is finished; run the training script with the same flags to go on."
        )
    return found


def graph(system, network):
    """A preprocessed volume (batch, depth, height, width, 1) -> probability and classes, see `Embryo.answer`."""
    return tf.function(lambda image: system.answer(network, image), input_signature=[export.VOLUME])


def every_stage(system, networks):
    """A `segment` of `evaluation.evaluate`: what the networks, {method: network}, answer on the original grid.

    A graph each: in one, TensorFlow would run several at once, in several times the memory.
    """
    values, graphs = (
        np.array([0, *system.labels], np.uint8),
        {m: graph(system, n) for m, n in networks.items()},
    )

    def segment(voxels):
        image, answers = system.preprocess(tf.constant(voxels[None, ..., None])), {}
        for method, answer in graphs.items():
            probability, classes = answer(image)
            answers[method] = {
                "label": values[classes[0, ..., 0]],
                "probability": {
                    name: probability[0, ..., k] for k, name in enumerate(system.labels.values())
                },
            }
        return answers

    return segment
