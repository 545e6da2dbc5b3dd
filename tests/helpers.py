"""What several tests share; `import helpers` works because pytest puts this folder on the path."""

import numpy as np


def noise(*shape, seed=0):
    """Standard normal float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def grey(*shape, seed=0):
    """Evenly distributed float32 in [0, 1)."""
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)
