"""Mouse embryo body and brain ventricle in 3D ultrasound: trains the auto-context refinement of Xu et al. 2020.

  python train_embryo.py                                                    # on phantoms, all stages
  python train_embryo.py --data_dir=my_embryos --foreground=1,2             # the body's label value, then the ventricle's
  python train_embryo.py --stage=initial && python train_embryo.py --stage=refine
  python train_embryo.py --noauto_context --initial_from=runs/embryo --work_dir=runs/embryo_no_context
  python train_embryo.py --preset=paper --data_dir=my_embryos

A run that was stopped goes on where it was when the same command is given again.
"""

import dataclasses
import functools
import pathlib
import shutil
import sys

from absl import app, flags

from tf_autoctx import errors, files, flag_types
from tf_autoctx.data import augment, datasets, phantoms
from tf_autoctx.models import layers
from tf_autoctx.systems import caching, embryo, evaluation, refinement, serving, stages
from tf_autoctx.training import devices, loop, runs
from tf_autoctx.training import flags as training_flags

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training_flags)
flags.DEFINE_string("work_dir", "runs/embryo", "Run folder; a run that is there goes on.")
flags.DEFINE_enum(
    "preset",
    None,
    list(embryo.PRESETS),
    "Values for flags not given. Default: demo on phantoms, else standard.",
)
flags.DEFINE_enum(
    "stage", "all", [*embryo.STAGES, "all"], "What to train; each starts from the one before."
)
flags.DEFINE_string(
    "initial_from", "", "Run folder whose initial stage is taken over instead of training one."
)
flags.DEFINE_bool(
    "auto_context", True, "Whether VNets II and III see the probability of VNet I beside the image."
)
flags.DEFINE_float(
    "end_to_end_learning_rate", 1e-3, "Of Adam in the stage end_to_end, at the start.", 0.0
)
flags.DEFINE_integer("low_size", 160, "Edge of the cube that VNet I sees the whole volume in.", 8)
flags.DEFINE_integer("body_box", 256, "Edge of VNet II's box in voxels.", 8)
flags.DEFINE_integer("ventricle_box", 160, "Edge of VNet III's box in voxels.", 8)
flags.DEFINE_integer("base_filters", 16, "Channels of the first stage of a VNet.", 1)
flags.DEFINE_integer("depth", 5, "Resolutions of a VNet.", 1)
flags.DEFINE_integer("kernel", 5, "Edge of the convolution kernels.", 1)
flags.DEFINE_enum(
    "normalization",
    "instance",
    ["instance", "batch"],
    "Statistics of the volume, or moving averages.",
)
flags.DEFINE_enum("initializer", "he", list(layers.INITIALIZERS), "Of convolutions.")
flags.DEFINE_float(
    "rotation", 180.0, "Largest random angle about each axis, in degrees.", 0.0, 180.0
)
flags.DEFINE_integer("shift", 30, "Largest random translation along an axis, in voxels.", 0)
flags.DEFINE_bool("flips", True, "Mirror each axis with probability 1/2.")
flags.DEFINE_float("phantom_spacing", 0.125, "Edge of a phantom's voxels in mm.", 0.01)
flag_types.define_integers(
    "phantom_size", [72, 88, 72], "Largest phantom in voxels along z, y, x.", length=3, least=8
)
flag_types.define_integers(
    "phantom_cases", [40, 10], "Phantoms to train on and to hold out.", length=2, least=1
)


def main(_):
    training_flags.fill_in(
        embryo.PRESETS[FLAGS.preset or ("standard" if FLAGS.data_dir else "demo")]
    )
    # Without a map beside the image no gradient reaches VNet I: there is nothing to train end to end.
    wanted = (
        [FLAGS.stage] if FLAGS.stage != "all" else embryo.STAGES[: 3 if FLAGS.auto_context else 2]
    )
    if "end_to_end" in wanted and not FLAGS.auto_context:
        raise errors.UserError(
            "--stage=end_to_end --noauto_context: no gradient reaches VNet I; expected auto-context."
        )
    strategy = devices.strategy(FLAGS.strategy)
    FLAGS.precision = devices.set_up(FLAGS.precision, FLAGS.seed)

    # Section 3.1: volumes, split, prepared once
    data_dir = FLAGS.data_dir or phantoms.write_embryos(
        pathlib.Path(FLAGS.work_dir) / "phantoms",
        FLAGS.phantom_size,
        FLAGS.phantom_spacing,
        FLAGS.phantom_cases,
        FLAGS.seed,
    )
    cases = datasets.load(data_dir, FLAGS.seed, FLAGS.validation_fraction)
    named = datasets.structures(cases, FLAGS.foreground)
    labels = {value: named[value] for value in FLAGS.foreground or named}
    if len(labels) != 2:
        raise errors.UserError(
            f"--foreground: labels are {labels}; expected the body's value and then the ventricle's."
        )
    try:
        system = training_flags.as_fields(embryo.Embryo, labels=labels)
    except ValueError as error:
        raise errors.UserError(f"--{error}") from None
    fingerprint = datasets.fingerprint(cases)
    initial = (
        refinement.initial_of(FLAGS.initial_from, system, fingerprint)
        if FLAGS.initial_from
        else None
    )
    run = runs.open_run(
        FLAGS.work_dir, embryo.NAME, training_flags.values(sys.modules[__name__]), fingerprint
    )
    runs.note(run, labels=labels)
    read = functools.partial(
        datasets.read_case, foreground=list(labels), labels=cases.labels, merge=False
    )
    held_out = evaluation.held_out(cases, read)
    training, validation = (
        caching.cached(part, run / "cache", read, refinement.prepared(system))
        for part in (cases.train, cases.validation)
    )
    refinement.check_structures(system, training)
    spacing = caching.spacing_range(training)
    runs.note(run, spacing=spacing)

    # Section 2.1: VNet I; 2.3: VNets II and III; 2.4: all three
    settings, motion = (
        training_flags.as_fields(loop.Settings),
        training_flags.as_fields(augment.RigidMotion),
    )
    if initial and not (run / "initial" / "model.keras").exists():
        with files.replacing(run / "initial" / "model.keras") as path:
            shutil.copyfile(initial, path)
        runs.note(run, initial_from=str(initial))
    for stage in wanted:
        if stage == "end_to_end":
            settings = dataclasses.replace(settings, learning_rate=FLAGS.end_to_end_learning_rate)
        refinement.train(stage, system, training, validation, run, strategy, settings, motion)

    # Section 3.2: held-out cases on their original grid
    if not devices.is_chief(strategy):
        return
    networks = {
        stage: stages.load(run / stage / "model.keras") for stage in refinement.finished(run)
    }
    evaluation.evaluate(
        embryo.NAME,
        held_out,
        refinement.every_stage(system, networks),
        run / "evaluation",
        {name: value for value, name in labels.items()},
        read,
        spacing,
    )
    stage, network = list(networks.items())[-1]
    serving.export_run(
        run,
        system,
        [network],
        lambda: [system.network(stage)],
        lambda networks: {"serving_default": lambda image: system.segment(*networks, image)},
        embryo.SERVED,
        FLAGS.export_precision,
    )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
