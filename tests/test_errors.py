"""What a user is told of an exception."""

import errno

import pytest

from tf_autoctx.errors import FieldError, UserError, sentence


def test_a_field_is_shown_as_its_flag():
    error = FieldError("patch_size", 64, "too large; expected at most half of `phantom_size`.")
    told = "patch_size=64: too large; expected at most half of `phantom_size`."
    assert str(error) == told and error.field == "patch_size"
    assert sentence(error) == "--patch_size=64: too large; expected at most half of --phantom_size."
    assert isinstance(error, UserError) and isinstance(error, ValueError)


@pytest.mark.parametrize(
    "value, shown", [((1, 2), "1,2"), ([3], "3"), (None, "None"), (0.5, "0.5"), ("a b", "a b")]
)
def test_values_are_shown_as_they_are_typed(value, shown):
    assert sentence(FieldError("size", value, "wrong.")) == f"--size={shown}: wrong."


def test_fields_in_backquotes_are_shown_as_flags():
    error = UserError("`resume` and `batch_size=1`: expected `a_1`, see model_card.json.")
    assert sentence(error) == "--resume and --batch_size=1: expected --a_1, see model_card.json."


def test_other_backquotes_stay():
    for message in ("`Not a field`", "`two words`", "a `path/to`", "``"):
        assert sentence(UserError(message)) == message


def test_a_path_in_the_way():
    cases = (
        (FileExistsError, errno.EEXIST, "File exists"),
        (PermissionError, errno.EACCES, "Permission denied"),
        (NotADirectoryError, errno.ENOTDIR, "Not a directory"),
        (IsADirectoryError, errno.EISDIR, "Is a directory"),
    )
    for kind, code, reason in cases:
        told = f"a/b: {reason.lower()}; expected a path that can be read or written."
        assert sentence(kind(code, reason, "a/b")) == told
        assert sentence(kind("of a library")) is None


def test_a_full_disk():
    for code in (errno.ENOSPC, errno.EDQUOT):
        told = "no disk space is left; free some and run again to go on."
        assert sentence(OSError(code, "full", "a/b")) == f"a/b: {told}"
        assert sentence(OSError(code, "full")) == f"output folder: {told}"


def test_faults_of_ours_are_no_sentence():
    faults = (ValueError("a"), KeyError("a"), OSError("a"), FileNotFoundError(2, "none", "a"))
    assert [sentence(fault) for fault in (*faults, KeyboardInterrupt())] == [None] * 5
