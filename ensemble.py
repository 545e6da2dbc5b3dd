"""Makes ONE SavedModel of several finished runs: its probability is the mean of theirs.

  python ensemble.py runs/fold_1 runs/fold_2 runs/fold_3 --output=models/head

See tf_autoctx/commands/ensemble.py, or --help.
"""

from tf_autoctx.commands.ensemble import command

if __name__ == "__main__":
    command()
