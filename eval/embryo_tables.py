"""Table 1 of the embryo system (Xu et al. 2020) from finished runs: Dice scores, and times.

  python eval/embryo_tables.py --runs=runs/embryo,runs/embryo_no_context \\
      --sliding_windows=runs/sliding_windows --output=runs/embryo_tables
  python eval/embryo_tables.py --seeds=0,1,2,3,4 --runs=runs/embryos --output=runs/embryo_tables

See tf_autoctx/commands/embryo_tables.py, or --help.
"""

from tf_autoctx.commands.embryo_tables import command

if __name__ == "__main__":
    command()
