"""The sliding-window peer of an embryo run (Xu et al. 2020, table 1, "Benchmark"), on its cases.

  python eval/sliding_windows.py --run=runs/embryo --output=runs/sliding_windows
  python eval/sliding_windows.py --run=runs/embryo --output=runs/sliding_windows --window=32

See tf_autoctx/commands/sliding_windows.py, or --help.
"""

from tf_autoctx.commands.sliding_windows import command

if __name__ == "__main__":
    command()
