"""Flags that every training script has, under the same names, and presets that fill in what the user left open."""

from absl import flags

from tf_autoctx import flag_types
from tf_autoctx.training import runs

flags.DEFINE_string(
    "data_dir",
    "",
    "Your data: a Decathlon or nnU-Net folder, or a CSV of image,label,split[,group]. Empty: phantoms.",
)
flag_types.define_integers(
    "foreground",
    None,
    "Label values that make up the object or objects, such as 1,2. Default: every non-zero one.",
    least=1,
)
flags.DEFINE_float(
    "validation_fraction",
    0.2,
    "Share of the training cases that choose the best checkpoint.",
    0.0,
    0.9,
)
flags.DEFINE_integer(
    "seed", 0, "Of splits, phantoms, weights, sample order and augmentation.", 0, 4_000_000
)
flags.DEFINE_integer("steps", None, "Optimizer steps per level or stage.", 1)
flags.DEFINE_integer("samples_per_epoch", None, "Samples between two validations.", 1)
flags.DEFINE_integer("checkpoint_steps", 100, "Steps between two checkpoints within an epoch.", 1)
flags.DEFINE_integer("batch_size", 1, "Samples per replica.", 1)
flags.DEFINE_float("learning_rate", None, "Of Adam, at the start.", 0.0)
flags.DEFINE_enum(
    "learning_rate_decay",
    None,
    ["constant", "polynomial"],
    "polynomial falls to 0 at the last step.",
)
flags.DEFINE_float("beta_1", 0.9, "Adam's momentum.", 0.0, 0.9999)
flags.DEFINE_integer(
    "patience",
    0,
    "Epochs without a better validation score after which training stops; 0: never.",
    0,
)
flags.DEFINE_enum(
    "strategy", "auto", ["auto", "single", "mirrored", "multi_worker"], "tf.distribute strategy."
)
flags.DEFINE_enum(
    "precision",
    "auto",
    ["auto", "float32", "mixed_bfloat16", "mixed_float16"],
    "auto: bfloat16 where the hardware has it.",
)
flags.DEFINE_enum(
    "export_precision",
    "float32",
    ["float32", "bfloat16"],
    "Of the networks in the SavedModel, whose inputs and outputs are float32. bfloat16: faster where the server has it.",
)


def fill_in(preset):
    """Sets the flags of `preset` ({name: value}) that the command line leaves open."""
    for name, value in preset.items():
        flags.FLAGS.set_default(name, value)


def as_fields(kind, **others):
    """An instance of the dataclass `kind`, each field but `others` from the flag of its name."""
    return runs.configured(kind, flags.FLAGS.flag_values_dict(), **others)


def values(script):
    """{name: value} of the flags of a training script (its module) and of those above: what config.json records."""
    return {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(script)}
