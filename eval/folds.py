"""Joins the scores of all folds of a data set into one table, in which every case is once.

  python eval/folds.py runs/fold_1 runs/fold_2 runs/fold_3 --output=runs/all_folds

See tf_autoctx/commands/folds.py, or --help.
"""

from tf_autoctx.commands.folds import command

if __name__ == "__main__":
    command()
