import functools
import gc
import os
import pathlib
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Networks and images are tiny, and a process runs on each core.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the scripts


@pytest.fixture(scope="session", autouse=True)
def lasting_processes():
    """See `lasting.processes`."""
    import lasting

    with lasting.processes():
        yield


@pytest.fixture(scope="module")
def own_processes():
    """See `lasting.no_processes`."""
    import lasting

    with lasting.no_processes():
        yield


@pytest.fixture(scope="module", autouse=True)
def nothing_stays():
    """Graphs of a file go with it: those of all files would take 10 GiB in each process."""
    yield
    gc.collect()


@pytest.fixture
def bfloat16():
    """Mixed bfloat16 for the networks that a test makes."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="session", autouse=True)
def graphs_are_made_quickly():
    """Graphs run once or twice here: neither optimizing them is worth its time, nor noting with
    every operation where it was made. Exports are optimized where saved_model_cli runs them."""
    import tensorflow as tf
    from tensorflow.python.util import tf_stack

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    tf_stack.extract_stack = functools.cache(tf_stack.extract_stack)
    yield


@pytest.fixture(scope="module")
def plain_networks():
    """See `helpers.plain_networks`."""
    import helpers

    with helpers.plain_networks():
        yield


@pytest.fixture
def unfinished():
    """See `running.unfinished`."""
    import running

    with running.unfinished():
        yield


@pytest.fixture
def unexported():
    """See `running.unexported`."""
    import running

    with running.unexported():
        yield


# Files in the order of their time, the longest first: a long one at the end would keep one process
# busy alone.
LONGEST = """
run_folder order channels train_renderer multi_organ train_multi_organ ensemble initial_weights
cleaning regions planning spacing shipped folds scripts renderer train_embryo score
wheel embryo sliding_windows unet3d training embryo_models client tiling orientation models
report_page benchmark_rows without_tensorflow fetal_head adding_a_system renderer_models
phantom_embryo isolation fetal_head_tables phantom_abdomen embryo_tables integrity start
subvolumes export phantoms augment pipeline
"""


def pytest_collection_modifyitems(items):
    # What is imported by now stays, and a graph in the making is thousands of objects, none of them
    # garbage: Python's default looks through all that there is again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
