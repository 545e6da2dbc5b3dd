"""A corpus as another scanner shows it."""

import numpy as np
import pytest
import running

from tf_autoctx.data import datasets, images, phantoms


def test_pixels_change_and_labels_and_splits_do_not(tmp_path, capfd):
    source = phantoms.write_fetal_heads_2d(
        tmp_path / "phantoms", "source", (48, 48), (3, 2), seed=1
    )
    command = [f"--data_dir={source}", f"--output={tmp_path / 'out'}"]
    done = running.script("eval/another_scanner.py", *command)
    assert done.returncode == 0, done.stderr
    before, after = (datasets.load(path, 0, 0) for path in (source, tmp_path / "out" / "cases.csv"))
    for split, count in (("train", 3), ("test", 2)):
        pairs = list(zip(getattr(before, split), getattr(after, split), strict=True))
        assert len(pairs) == count
        for a, b in pairs:
            assert a.name == b.name
            old, new = (images.read(case.image).array for case in (a, b))
            assert old.shape == new.shape and np.abs(old.astype(float) - new).mean() > 10
            np.testing.assert_array_equal(*(images.read(case.label).array for case in (a, b)))
    with pytest.raises(SystemExit) as stopped:
        running.call("another_scanner", *command)
    assert stopped.value.code == 1 and "is there already" in capfd.readouterr().err
