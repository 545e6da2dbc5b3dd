"""What several tests share; `import helpers` works because pytest puts this folder on the path."""

import contextlib
import importlib
import pathlib
import pkgutil
import signal
import subprocess
import sys

import numpy as np


def noise(*shape, seed=0):
    """Standard normal float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def grey(*shape, seed=0):
    """Evenly distributed float32 in [0, 1)."""
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def seeds(count):
    """So many seeds for stateless random ops."""
    import tensorflow as tf

    return [tf.constant([3, number], tf.int64) for number in range(count)]


def contents(folder):
    """{path below a folder: bytes} of its files."""
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def graph(function, channels=1):
    """A function of (batch, depth, height, width, channels) as a graph that knows no size."""
    import tensorflow as tf

    signature = [tf.TensorSpec([None, None, None, None, channels])]
    return tf.function(function, input_signature=signature, autograph=False)


def randomize(model, seed=0, low=0.5):
    """Gives a model weights like those of a trained network and returns it.

    Kernels keep their spread; scales, slopes, variances (from `low` to 1.5), means and biases
    differ by channel.
    """
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith(("gamma", "variance", "alpha")):
            weight.assign(rng.uniform(low, 1.5, weight.shape))
        elif weight.path.endswith(("beta", "bias", "mean")):
            weight.assign(rng.normal(0, 0.3, weight.shape))
        else:
            weight.assign(rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape))
    return model


def plain(*, channels, classes, name, spatial=3):
    """A network of one convolution, whose training takes a second and not ten."""
    import keras

    image = keras.Input((*spatial * (None,), channels))
    convolution = keras.layers.Conv3D if spatial == 3 else keras.layers.Conv2D
    logits = convolution(classes, 3, padding="same", name="head")(image)
    return keras.Model(image, logits, name=name)


@contextlib.contextmanager
def plain_networks():
    """`plain` in place of the networks of every system, where they are not what is tested."""
    import pytest

    from tf_autoctx.models import embryo, unet3d
    from tf_autoctx.systems.embryo import sliding_windows
    from tf_autoctx.systems.fetal_head import segmentation
    from tf_autoctx.systems.renderer import segmentation as rendering

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "usegnet", plain_usegnet)
        patch.setattr(unet3d, "unet3d", plain_unet3d)
        for module in (embryo, sliding_windows):
            patch.setattr(module, "vnet", plain_vnet)
        patch.setattr(rendering, "renderer", plain_renderer)
        patch.setattr(rendering, "segmentor2d", plain_segmentor)
        patch.setattr(rendering, "discriminator", plain_discriminator)
        yield


def plain_usegnet(shape, *_, **__):
    """`plain` in place of `usegnet.usegnet`."""
    import keras

    network = plain(channels=shape[-1], classes=2, name="usegnet", spatial=len(shape) - 1)
    return keras.Model(network.input, {"logits": network.output})


def plain_unet3d(shape, classes, *, name, **_):
    """Likewise in place of `unet3d`."""
    return plain(channels=shape[-1], classes=classes, name=name)


def plain_vnet(shape=(1,), outputs=3, options=None, name="vnet"):
    """Likewise in place of `vnet`."""
    return plain(channels=shape[-1], classes=outputs, name=name)


def plain_2d(channels, outputs, name):
    """Likewise for images: {output: channels}."""
    import keras

    image = keras.Input((None, None, channels))
    made = {
        key: keras.layers.Conv2D(n, 3, padding="same", name=key)(image)
        for key, n in outputs.items()
    }
    return keras.Model(image, made, name=name)


def plain_segmentor(**_):
    """Likewise in place of `segmentor2d`."""
    return plain_2d(1, {"logits": 2, "aux1": 2, "aux2": 2}, "segmentor")


def plain_renderer(**_):
    """Likewise in place of `renderer`."""
    return plain_2d(1, {"rendered": 1, "aux": 1}, "renderer")


def plain_discriminator(channels, *, name, **_):
    """Likewise in place of `discriminator`: a number an image."""
    import keras

    everywhere = plain_2d(channels, {"real": 1}, "everywhere")
    number = keras.layers.GlobalAveragePooling2D()(everywhere.output["real"])
    return keras.Model(everywhere.input, number, name=name)


def dice(a, b):
    """Dice coefficient of two masks."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def modules_after(code):
    """Names of all modules of a fresh interpreter that has run the code."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def in_other_processes(monkeypatch, function, letters):
    """Lets a function of `isolated` change the package for files of a name with these letters, in
    all processes of pools."""
    from tf_autoctx.data import isolation

    begin, end = isolation.PROGRAM.split("{start}")
    patch = f"import isolated; isolated.{function}({letters!r}); "
    monkeypatch.setattr(isolation, "PROGRAM", begin + patch + "{start}" + end)


def shadowed(package):
    """Submodules of a package that are not its attribute of that name, all imported."""
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    return [name for name, module in modules.items() if getattr(package, name) is not module]


def heed_interrupts():
    """For a process: tests may run in a job of a shell, which lets those behind ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def in_order(model, kind):
    """The layers of a class, in the order in which they were made; their names tell their place."""

    def number(layer):
        return int("0" + layer.output.name.removeprefix("keras_tensor").lstrip("_"))

    return iter(sorted((x for x in model.layers if type(x).__name__ == kind), key=number))
