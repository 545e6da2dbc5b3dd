"""Fetal head in 2D ultrasound across scanners: self-play training of Yang et al. 2018 on a source corpus.

  python train_renderer.py                                            # on phantoms
  python train_renderer.py --variant=S2T-p --corpus=my_scanner        # images/ and labels/, or a Decathlon folder
  python train_renderer.py --variant=Orig-S2T --work_dir=runs/orig    # a row of the paper's table: no renderer
  python train_renderer.py --preset=paper --corpus=my_decathlon_folder          # with held-out images

A run that was stopped goes on where it was when the same command is given again. predict.py then renders images of
other scanners online, and eval/renderer_tables.py scores a whole corpus.
"""

import functools
import pathlib
import sys

import tensorflow as tf
from absl import app, flags

from tf_autoctx import biometry, errors, export, flag_types
from tf_autoctx.data import datasets, phantoms
from tf_autoctx.models import layers
from tf_autoctx.models.renderer import HEADS
from tf_autoctx.systems import evaluation, renderer, self_play, serving
from tf_autoctx.training import devices, loop, runs
from tf_autoctx.training import flags as training_flags

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training_flags)
flags.DEFINE_string("work_dir", "runs/renderer", "Run folder; a run that is there goes on.")
flags.DEFINE_alias("corpus", "data_dir")
flags.DEFINE_enum(
    "preset",
    None,
    list(renderer.PRESETS),
    "Values for flags not given. Default: demo on phantoms, else standard.",
)
flags.DEFINE_enum("variant", "S2T", list(renderer.VARIANTS), "Row of the paper's table 1.")
flags.DEFINE_integer(
    "size", 320, "Edge that images are resized to, in pixels; 0: each at its own size.", 0
)
flags.DEFINE_integer("base_filters", 32, "Channels of the first stage.", 1)
flags.DEFINE_enum(
    "discriminator_head",
    "scaled",
    HEADS,
    "Linear unit on all features, scaled or not; or on their mean: any size.",
)
flags.DEFINE_enum("initializer", "truncated_normal", list(layers.INITIALIZERS), "Of convolutions.")
flags.DEFINE_float(
    "rendering_weight", 1.0, "Alpha 0 of equation 1: the rendered image's distance.", 0.0
)
flags.DEFINE_float(
    "rendering_aux_weight", 1.0, "Alpha 1 of equation 1: the side branch's distance.", 0.0
)
flags.DEFINE_float("dice_weight", 100.0, "Of the Dice terms beside the cross entropy.", 0.0)
flags.DEFINE_enum(
    "update_order",
    "summed",
    self_play.ORDERS,
    "One step for all terms' sum, one for each, or in turn.",
)
flags.DEFINE_integer(
    "generator_updates", 2, "Per update of the discriminators, unless published.", 1
)
flag_types.define_integers(
    "phantom_size", [96, 96], "Pixels of a phantom along y, x.", length=2, least=8
)
flag_types.define_integers(
    "phantom_cases", [100, 20], "Phantoms to train on and to hold out.", length=2, least=1
)


def main(_):
    training_flags.fill_in(
        renderer.PRESETS[FLAGS.preset or ("standard" if FLAGS.data_dir else "demo")]
    )
    strategy = devices.strategy(FLAGS.strategy)
    FLAGS.precision = devices.set_up(FLAGS.precision, FLAGS.seed)
    try:
        system = training_flags.as_fields(renderer.Renderer)
    except ValueError as error:
        raise errors.UserError(f"--{error}") from None

    # Section 3: the source corpus S (for Orig-T2T, the target)
    data_dir = FLAGS.data_dir
    if not data_dir:
        source, target = phantoms.write_fetal_heads_2d(
            pathlib.Path(FLAGS.work_dir) / "phantoms",
            FLAGS.phantom_size,
            FLAGS.phantom_cases,
            FLAGS.seed,
        )
        data_dir = target if FLAGS.variant == "Orig-T2T" else source
    cases = datasets.load(data_dir, FLAGS.seed, FLAGS.validation_fraction)
    run = runs.open_run(
        FLAGS.work_dir,
        renderer.NAME,
        training_flags.values(sys.modules[__name__]),
        datasets.fingerprint(cases),
    )
    read = functools.partial(
        datasets.read_case, foreground=FLAGS.foreground, labels=cases.labels, dimensions=2
    )
    held_out = evaluation.held_out(cases, read)
    training, validation = (
        self_play.cached(part, system, run / "cache", read)
        for part in (cases.train, cases.validation)
    )
    runs.note(run, labels={1: renderer.STRUCTURE})

    # Section 2.3: self-play full training; then S is rendered once into S'
    objective, settings = (
        training_flags.as_fields(self_play.Objective),
        training_flags.as_fields(loop.Settings),
    )
    networks = self_play.train(system, objective, training, validation, run, strategy, settings)
    if not devices.is_chief(strategy):
        return
    if system.renders:
        self_play.render_source(system, networks, training, run)
        self_play.compare_source(training, run)

    # Held-out cases of the same corpus, by the trained weights as they are
    answer = tf.function(
        lambda image: system.segment(networks, image), input_signature=[export.IMAGE]
    )

    def segment(pixels):
        found = {name: x[0, ..., 0] for name, x in answer(pixels[None, ..., None]).items()}
        return {FLAGS.variant: found | {"probability": {renderer.STRUCTURE: found["probability"]}}}

    evaluation.evaluate(
        renderer.NAME,
        held_out,
        segment,
        run / "evaluation",
        {renderer.STRUCTURE: 1},
        read,
        measure=biometry.compare,
    )
    names = [name for name in ("renderer", "segmentor") if name in networks]
    served = lambda networks: [networks[name] for name in names]
    serving.export_run(
        run,
        system,
        served(networks),
        lambda: served(system.networks()),
        lambda networks: {
            "serving_default": lambda image: system.segment(dict(zip(names, networks)), image)
        },
        renderer.SERVED,
        FLAGS.export_precision,
        export.IMAGE,
    )


if __name__ == "__main__":
    app.run(errors.in_one_sentence(main))
