"""What the epochs of a training came to."""

import math

import pytest

from tf_autoctx.errors import UserError
from tf_autoctx.report import histories


def test_columns_are_those_of_the_file(tmp_path):
    file = tmp_path / "history.csv"
    file.write_text("epoch,loss,val_DSC\n0,1.5,NA\n1,0.5,0.25\n")
    read = histories.read(file)
    assert list(read) == ["loss", "val_DSC"] and read["loss"] == [1.5, 0.5]
    assert math.isnan(read["val_DSC"][0]) and read["val_DSC"][1] == 0.25


@pytest.mark.parametrize("text", ["", "epoch,loss\n", "epoch,val_DSC\n0,1\n", "epoch,loss\n0,a\n"])
def test_what_is_no_history_is_one_sentence(tmp_path, text):
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(UserError, match=r"history.csv: not the history of a training; expected"):
        histories.read(tmp_path / "history.csv")


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.5, 0.7, 0.6, 0.75], (70.0, 75.0)),  # the best so far, as the best weights are kept
        ([0.5, 0.7, 0.8, 0.75], (80.0, 80.0)),
        ([0.5, math.nan, 0.6, math.nan, 0.9, math.nan, 0.91, math.nan], (90.0, 91.0)),
        ([0.5], (50.0, 50.0)),
    ],
)
def test_what_the_last_quarter_gained(values, expected):
    assert histories.last_quarter({"loss": [], "val_DSC": values}) == pytest.approx(expected)


def test_without_validation_nothing_is_known():
    for history in ({"loss": [1.0]}, {"loss": [1.0, 1.0], "val_DSC": [math.nan] * 2}):
        assert all(map(math.isnan, histories.last_quarter(history)))
