"""Organs and vessels in CT: trains a multi-scale pyramid of 3D U-Nets with auto-context (Roth et al. 2018).

  python train_multi_organ.py --mode=end_to_end --levels=2                         # on phantoms
  python train_multi_organ.py --data_dir=my_cts                                    # 0.6-1 mm CTs: --downsampling=4,2
  python train_multi_organ.py --data_dir=my_cts --downsampling=2,1                 # data that is coarse already
  python train_multi_organ.py --preset=paper --data_dir=my_cts

A run that was stopped goes on where it was when the same command is given again.
"""

import functools
import pathlib
import sys

from absl import app, flags

from tf_autoctx import errors, flag_types
from tf_autoctx.data import augment, datasets, phantoms
from tf_autoctx.models import layers
from tf_autoctx.systems import caching, evaluation, multi_organ, pyramids, serving
from tf_autoctx.training import devices, loop, runs
from tf_autoctx.training import flags as training_flags

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training_flags)
flags.DEFINE_string("work_dir", "runs/multi_organ", "Run folder; a run that is there goes on.")
flags.DEFINE_enum(
    "preset",
    None,
    list(multi_organ.PRESETS),
    "Values for flags not given. Default: demo on phantoms, else standard.",
)
flags.DEFINE_enum(
    "mode",
    "end_to_end",
    list(multi_organ.MODES),
    "How the levels learn; no_context: the last alone.",
)
flags.DEFINE_integer("levels", 2, "Levels of the pyramid, S.", 1)
flag_types.define_integers(
    "downsampling",
    None,
    "Voxels of the original grid in a voxel of each level. Default: 2^S, ..., 4, 2.",
    least=1,
)
flag_types.define_edge(
    "patch_size",
    64,
    "Edge of a training subvolume in voxels of its level, a multiple of 8.",
    multiple=8,
)
flag_types.define_edge(
    "tile_size",
    128,
    "Largest edge of an inference tile in voxels of its level, a multiple of 8: bounds memory.",
    multiple=8,
    least=16,
)
flags.DEFINE_float("window_low", -160.0, "HU that becomes 0.")
flags.DEFINE_float("window_high", 240.0, "HU that becomes 1.")
flags.DEFINE_integer("base_filters", 32, "Channels of the first convolution.", 1)
flags.DEFINE_enum(
    "normalization", "batch", ["batch", "instance"], "Moving averages, or statistics of the tile."
)
flags.DEFINE_enum("initializer", "he", list(layers.INITIALIZERS), "Of convolutions.")
flags.DEFINE_integer("shift", 4, "Largest random translation, in voxels of the last level.", 0)
flags.DEFINE_float(
    "rotation", 10.0, "Largest random angle about each axis, in degrees.", 0.0, 180.0
)
flags.DEFINE_float(
    "elastic",
    4.0,
    "SD of the displacements of the B-spline's control points, in voxels of the last level.",
    0.0,
)
flags.DEFINE_integer(
    "elastic_spacing", 32, "Voxels of the last level between two B-spline control points.", 1
)
flags.DEFINE_float("phantom_spacing", 1.5, "Edge of a phantom's voxels in mm.", 0.1)
flag_types.define_integers(
    "phantom_size", [112, 128, 176], "Voxels of a phantom along z, y, x.", length=3, least=8
)
flag_types.define_integers(
    "phantom_cases", [24, 8], "Phantoms to train on and to hold out.", length=2, least=1
)


def main(_):
    training_flags.fill_in(
        multi_organ.PRESETS[FLAGS.preset or ("standard" if FLAGS.data_dir else "demo")]
    )
    if FLAGS.downsampling is None:
        FLAGS.set_default("downsampling", [2**s for s in range(FLAGS.levels, 0, -1)])
    if len(FLAGS.downsampling) != FLAGS.levels:
        raise errors.UserError(
            f"--downsampling has {len(FLAGS.downsampling)} factors; expected --levels={FLAGS.levels}."
        )
    strategy = devices.strategy(FLAGS.strategy)
    FLAGS.precision = devices.set_up(FLAGS.precision, FLAGS.seed)

    # Section 3: CTs, split, windowed and shrunk once to the grid of every level
    data_dir = FLAGS.data_dir or phantoms.write_abdomens(
        pathlib.Path(FLAGS.work_dir) / "phantoms",
        FLAGS.phantom_size,
        FLAGS.phantom_spacing,
        FLAGS.phantom_cases,
        FLAGS.seed,
    )
    cases = datasets.load(data_dir, FLAGS.seed, FLAGS.validation_fraction)
    labels = datasets.structures(cases, FLAGS.foreground)
    try:
        system = training_flags.as_fields(multi_organ.MultiOrgan, labels=labels)
    except ValueError as error:
        raise errors.UserError(f"--{error}") from None
    run = runs.open_run(
        FLAGS.work_dir,
        multi_organ.NAME,
        training_flags.values(sys.modules[__name__]),
        datasets.fingerprint(cases),
    )
    runs.note(run, labels=labels)
    read = functools.partial(pyramids.read_ct, foreground=list(labels), labels=cases.labels)
    held_out = evaluation.held_out(cases, read)
    training, validation = (
        caching.cached(part, run / "cache", read, pyramids.prepared(system, FLAGS.seed))
        for part in (cases.train, cases.validation)
    )
    pyramids.warn_of_missing(system, training)
    spacing = caching.spacing_range(training)
    runs.note(run, spacing=spacing)

    # Section 2.2: the levels, trained together or one after the other
    network = pyramids.train(
        system,
        training,
        validation,
        run,
        strategy,
        training_flags.as_fields(loop.Settings),
        training_flags.as_fields(augment.Deformation),
    )

    # Section 3: held-out cases on their original grid, tile by tile; no post-processing
    if not devices.is_chief(strategy):
        return
    evaluation.evaluate(
        multi_organ.NAME,
        held_out,
        pyramids.every_level(system, network),
        run / "evaluation",
        {name: value for value, name in labels.items()},
        read,
        spacing,
        window=(FLAGS.window_low, FLAGS.window_high),
    )

    def functions(networks):
        unets = system.unets(*networks)
        return {
            "serving_default": lambda image: system.segment(unets, image),
            "probabilities": lambda image: system.segment(unets, image, probability=True),
        }

    serving.export_run(
        run,
        system,
        [network],
        lambda: [system.network()],
        functions,
        multi_organ.SERVED,
        FLAGS.export_precision,
    )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
