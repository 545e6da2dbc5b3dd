import os
import pathlib
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Networks and images are tiny, and a process runs on each core.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the scripts


@pytest.fixture
def bfloat16():
    """Mixed bfloat16 for the networks that a test makes."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def unexported():
    """See `running.unexported`."""
    import running

    with running.unexported():
        yield


def pytest_collection_modifyitems(items):
    """Files that train come first: a long one at the end would keep one process busy alone."""
    items.sort(
        key=lambda item: (
            not item.path.name.startswith(("test_train_", "test_scripts", "test_fetal_head_tables"))
        )
    )
