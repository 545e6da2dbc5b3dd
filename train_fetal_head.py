"""Whole fetal head in 3D ultrasound: trains USegNet-DS-HAS-Ctx (Yang et al. 2019), level after level.

  python train_fetal_head.py --level=2                       # on phantoms
  python train_fetal_head.py --level=2 --data_dir=my_data    # a Decathlon or nnU-Net folder, or a CSV
  python train_fetal_head.py --preset=paper --data_dir=my_data

A run that was stopped goes on where it was when the same command is given again.
"""

import functools
import pathlib
import sys

from absl import app, flags

from tf_autoctx import biometry, errors, flag_types
from tf_autoctx.data import augment, datasets, phantoms
from tf_autoctx.models import layers
from tf_autoctx.models.usegnet import ATTENTION_KERNELS, VARIANTS
from tf_autoctx.systems import caching, evaluation, fetal_head, levels, serving
from tf_autoctx.training import devices, loop, runs
from tf_autoctx.training import flags as training_flags

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training_flags)
flags.DEFINE_string("work_dir", "runs/fetal_head", "Run folder; a run that is there goes on.")
flags.DEFINE_enum(
    "preset",
    None,
    list(fetal_head.PRESETS),
    "Values for flags not given. Default: demo on phantoms, else standard.",
)
flags.DEFINE_integer(
    "level", None, "Auto-context levels to train. Default: 2 for -Ctx, 1 for other variants.", 1
)
flags.DEFINE_enum(
    "variant",
    "USegNet-DS-HAS-Ctx",
    [*VARIANTS, *fetal_head.WAYS],
    "Row of the paper's tables 1 and 2.",
)
flags.DEFINE_enum("join", "sum", ["sum", "concat"], "How a level sees the last one's probability.")
flags.DEFINE_float("scale", 0.4, "Factor from the original grid to the network's.", 0.01, 1.0)
flag_types.define_edge("patch_size", 64, "Edge of a p-USegNet patch, a multiple of 8.", multiple=8)
flags.DEFINE_integer("base_filters", 32, "Channels of the first stage.", 1)
flags.DEFINE_enum(
    "normalization",
    "instance",
    ["instance", "batch"],
    "Statistics of the volume, or moving averages.",
)
flags.DEFINE_enum("initializer", "he", list(layers.INITIALIZERS), "Of convolutions.")
flags.DEFINE_enum(
    "attention_kernel", "paper", list(ATTENTION_KERNELS), "Kernels of the attention modules."
)
flags.DEFINE_float("l2", 0.0, "Lambda of equation 2.", 0.0)
flags.DEFINE_bool("flips", True, "Mirror each axis with probability 1/2.")
flags.DEFINE_integer("shift", 0, "Largest random translation, in voxels of the network's grid.", 0)
flags.DEFINE_float(
    "intensity_jitter", 0.0, "Half width of the range of random factors on intensities.", 0.0, 1.0
)
flags.DEFINE_float("erase_probability", 0.0, "Share of samples with a random box erased.", 0.0, 1.0)
flag_types.define_integers(
    "phantom_size", [97, 64, 110], "Voxels of a phantom along z, y, x.", length=3, least=8
)
flag_types.define_integers(
    "phantom_cases", [100, 10], "Phantoms to train on and to hold out.", length=2, least=1
)
flags.DEFINE_integer(
    "phantom_scans", 1, "Scans of a phantom that is held out, each along another direction.", 1, 3
)


def main(_):
    training_flags.fill_in(
        fetal_head.PRESETS[FLAGS.preset or ("standard" if FLAGS.data_dir else "demo")]
    )
    FLAGS.set_default("level", 2 if FLAGS.variant.endswith("-Ctx") else 1)
    strategy = devices.strategy(FLAGS.strategy)
    FLAGS.precision = devices.set_up(FLAGS.precision, FLAGS.seed)
    system = training_flags.as_fields(fetal_head.FetalHead)

    # Section 2.1: volumes, split, prepared once
    data_dir = FLAGS.data_dir or phantoms.write_fetal_heads(
        pathlib.Path(FLAGS.work_dir) / "phantoms",
        FLAGS.phantom_size,
        FLAGS.phantom_cases,
        FLAGS.seed,
        FLAGS.phantom_scans,
    )
    cases = datasets.load(data_dir, FLAGS.seed, FLAGS.validation_fraction)
    run = runs.open_run(
        FLAGS.work_dir,
        fetal_head.NAME,
        training_flags.values(sys.modules[__name__]),
        datasets.fingerprint(cases),
    )
    read = functools.partial(datasets.read_case, foreground=FLAGS.foreground, labels=cases.labels)
    held_out = evaluation.held_out(cases, read)
    training, validation = (
        levels.cached(part, system, run / "cache", read) for part in (cases.train, cases.validation)
    )
    spacing = caching.spacing_range(training)
    runs.note(run, labels={1: fetal_head.STRUCTURE}, spacing=spacing)

    # Section 2.5: level k is trained after level k - 1 is finished, and sees its probability
    settings, augmentation = (
        training_flags.as_fields(loop.Settings),
        training_flags.as_fields(augment.Augmentation),
    )
    networks = []
    for level in range(1, FLAGS.level + 1):
        folder = run / f"level_{level}"
        network = levels.train(
            level, system, training, validation, folder, strategy, settings, augmentation, FLAGS.l2
        )
        networks.append(network)
        if level < FLAGS.level:
            training, validation = (
                levels.with_context(part, system, network, folder / "probability")
                for part in (training, validation)
            )

    # Section 3: held-out cases on their original grid
    if not devices.is_chief(strategy):
        return
    evaluation.evaluate(
        fetal_head.NAME,
        held_out,
        levels.every_level(system, networks),
        run / "evaluation",
        {fetal_head.STRUCTURE: 1},
        read,
        spacing,
        measure=biometry.compare,
    )
    serving.export_run(
        run,
        system,
        networks,
        lambda: [system.network() for _ in networks],
        lambda networks: {"serving_default": lambda image: system.segment(networks, image)},
        fetal_head.SERVED,
        FLAGS.export_precision,
    )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
