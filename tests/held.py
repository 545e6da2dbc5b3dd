"""Cases in memory, for tests of what reads them from disk."""

import tensorflow as tf


def held(sample):
    """A case of tensors."""
    return {
        name: tuple(map(held, tensor)) if name == "others" else Held(tf.convert_to_tensor(tensor))
        for name, tensor in sample.items()
    }


class Held:
    """An array in memory, read like one of `tf_autoctx.data.arrays.Stored`."""

    def __init__(self, tensor):
        self._tensor = tensor

    def shape(self):
        return tf.shape(self._tensor)

    def whole(self):
        return self._tensor

    def cut(self, low, size):
        channels = self._tensor.shape[-1]
        return tf.slice(self._tensor, tf.concat([low, [0]], 0), tf.concat([size, [channels]], 0))

    def at(self, index):
        return tf.gather_nd(self._tensor, tf.stack(index, axis=-1))
