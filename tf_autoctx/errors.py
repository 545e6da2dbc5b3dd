"""How a user's mistake reaches the user: one sentence, exit code 1, no traceback."""

import errno
import functools
import sys

from absl import flags, logging


class UserError(Exception):
    """Bad input. The message is one sentence: the file or flag, what was found, what was expected."""


def in_one_sentence(main):
    """Wraps a script's `main`: a `UserError`, a path in the way or a full disk is one sentence and exit code 1."""

    @functools.wraps(main)
    def wrapped(argv):
        # TensorFlow's import turns on its own log of every step of a save.
        logging.set_verbosity(flags.FLAGS.verbosity if flags.FLAGS["verbosity"].present else logging.WARNING)
        try:
            return main(argv)
        except UserError as error:
            message = str(error)
        except (FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
            if error.filename is None or error.strerror is None:
                raise
            message = f"{error.filename}: {error.strerror.lower()}; expected a path that can be read or written."
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"{error.filename or 'output folder'}: no disk space is left; free some and run again to go on."
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)

    return wrapped
