"""What `benchmarks/dynunet.py` does with made-up cases, in a process of its own: PyTorch's compiler
and TensorFlow, which other tests have loaded, bring down a process that has both."""

import dataclasses
import itertools
import sys
import types

import numpy as np

SIZES = ([(35, 50, 35)], [(30, 50, 35), (36, 48, 33), (90, 50, 35)], [(128, 128, 128)])
SIZES = (*SIZES, [(9, 40, 300)])
EDGES = [(40, 56, 40), (40, 56, 40), (48, 48, 48), (16, 40, 168)]


def cube(x, noise_seed=0):
    """A case whose bright cube begins at x."""
    label = np.zeros((1, 20, 20, 20), np.uint8)
    label[:, 6:13, 6:13, x : x + 7] = 1
    noise = np.random.default_rng(noise_seed).normal(0, 0.2, label.shape)
    return {"image": (2.0 * label + noise).astype(np.float32), "label": label}


def answers(pairs):
    """What tests ask.

    Args:
      pairs: [(folder of a run, folder of its peer)] that are trained too, for a step a second.
    """
    sys.modules["tensorflow"] = None
    import dynunet
    import peer_training

    clock = itertools.count()
    dynunet.time = types.SimpleNamespace(perf_counter=lambda: float(next(clock)))
    plan = dynunet.Plan((16, 16, 16), 1, 2, False, 4.0, 1, 0)

    def weights(cases, **changed):
        told = []
        made = dynunet.trained(cases, dataclasses.replace(plan, **changed), told.append)
        state = made.network.state_dict().values()
        return made.steps, told, np.concatenate([value.numpy().ravel() for value in state])

    def drawn(count, case, **changed):
        """Patches of a case."""
        patches = iter(dynunet.Patches([case], dataclasses.replace(plan, **changed)))
        return [
            {name: voxels.numpy() for name, voxels in patch.items()}
            for patch in itertools.islice(patches, count)
        ]

    longer, new = dataclasses.replace(plan, seconds=40.0), cube(6, noise_seed=1)
    found = dynunet.trained([cube(4), cube(8)], longer, lambda _: None).segment(new["image"], plan)
    sided = cube(1)
    sided["image"] += np.where(np.arange(20) < 10, 5.0, 0.0).astype(np.float32)
    small = {name: np.zeros((1, 64, 64, 64), np.float32) for name in ("image", "label")}
    small["label"][:, 30:32, 30:32, 30:32] = 1
    for places in pairs:
        peer_training.train(*places, 1)
    return {
        "edges": [dynunet.edges_for(sizes) for sizes in SIZES],
        "first": weights([cube(4), cube(8)]),
        "same": weights([cube(4), cube(8)]),
        "other case": weights([cube(4), cube(9)]),
        "other seed": weights([cube(4), cube(8)], seed=1),
        "found": (found, new["label"][0]),
        "patches": {way: drawn(20, sided, mirrored=way) for way in (False, True)},
        "small": sum(bool(patch["label"].any()) for patch in drawn(40, small)),
    }
