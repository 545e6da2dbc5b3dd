"""How the embryo cascade is trained: VNet I, then VNets II and III on what it found, then all three."""

import pathlib
import shutil

import numpy as np
import tensorflow as tf
from absl import logging

from tf_autoctx import export, losses, metrics
from tf_autoctx.data import pipeline
from tf_autoctx.errors import UserError
from tf_autoctx.files import replacing
from tf_autoctx.systems import embryo, stages
from tf_autoctx.training import runs

TAKEN_OVER = {"initial": (), "refine": ("vnet_1",), "end_to_end": ("vnet_1", "vnet_2", "vnet_3")}


def prepared(system):
    """A `prepare` of `caching.cached`: the preprocessed image, and the label as classes 0, 1 (body), 2 (ventricle)."""

    def prepare(case, voxels, label):
        classes = sum((label == value).astype(np.uint8) * k for k, value in enumerate(system.labels, start=1))
        return {"image": system.preprocess(tf.constant(voxels))[0], "label": classes[0]}

    return prepare


def warn_of_missing(system, training):
    """Warns of a structure that no training case has."""
    found = set()
    for entry in training:
        found |= set(np.unique(pipeline.stored(entry["label"], "label")).tolist())
    for k, (value, name) in enumerate(system.labels.items(), start=1):
        if k not in found:
            logging.warning("No training case has %s (label %d): it cannot be learnt.", name, value)


def take_over_initial(source, run):
    """Copies the finished initial stage of the run folder `source` into `run`, unless there is one.

    Raises:
      UserError: `source` is no such run, or its VNet I or its data differ from those of `run`.
    """
    theirs, ours = runs.load_config(source), runs.load_config(run)
    if theirs["system"] != embryo.NAME or theirs["data_fingerprint"] != ours["data_fingerprint"]:
        raise UserError(f"--initial_from={source}: a run of another system or other data; expected those of {run}.")
    for name in ("low_size", "base_filters", "depth", "kernel", "normalization"):
        if theirs["flags"].get(name) != ours["flags"][name]:
            raise UserError(
                f"--initial_from={source}: made with --{name}={theirs['flags'].get(name)}, now {ours['flags'][name]}; "
                "expected the same."
            )
    file = pathlib.Path(source) / "initial" / "model.keras"
    if not file.exists():
        raise UserError(f"{file}: this stage is not finished; finish it, or leave --initial_from out.")
    if not stages.finished(run / "initial"):
        with replacing(run / "initial" / "model.keras") as path:
            shutil.copyfile(file, path)


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
    pipeline.require_one_shape(
        {tuple(pipeline.stored(entry["image"], "image").shape[:3]) for entry in training}, settings.batch_size
    )
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
            return dice(losses.one_hot(system.low_label(label), answer["initial"]), answer["initial"])
        return dice(label == 1, answer["body"]) + dice(label == 2, answer["ventricle"])

    def score(network):
        segment = tf.function(
            lambda image: system.classes(system.probability(network, image)), input_signature=[export.VOLUME]
        )

        def mean_dice(sample):
            answer, truth = segment(sample["image"][None])[0, ..., 0].numpy(), sample["label"][..., 0].numpy()
            return np.mean([metrics.dice(answer == k, truth == k) for k in np.setdiff1d(truth, 0)])

        return mean_dice

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
    """{stage: network} of the finished stages of a run folder, in their order.

    Raises:
      UserError: there is none, or one that cannot be read.
    """
    networks = {
        stage: stages.finished(run / stage) for stage in embryo.STAGES if (run / stage / "model.keras").exists()
    }
    if not networks:
        raise UserError(f"{run}: no stage is finished; run the training script with the same flags to go on.")
    return networks


def every_stage(system, networks):
    """A `segment` of `evaluation.evaluate`: what the networks, {method: network}, answer on the original grid."""
    values = np.array([0, *system.labels], np.uint8)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None))])
    def segment(voxels):
        image = system.preprocess(voxels[None, ..., None])
        return {
            method: system.classes(system.probability(network, image))[0, ..., 0]
            for method, network in networks.items()
        }

    return lambda voxels: {method: values[classes] for method, classes in segment(voxels).items()}
