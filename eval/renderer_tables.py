r"""Table 1 and figure 5b of online rendering (Yang et al. 2018): a whole corpus of another scanner.

  python eval/renderer_tables.py --runs=runs/t2t,runs/orig,runs/s2t_sp,runs/s2t --output=tables
  python eval/renderer_tables.py --runs=runs/orig,runs/renderer --corpus=my_other_scanner \
      --cases=20 --output=tables
  python eval/renderer_tables.py --seeds=0,1,2,3,4 --runs=runs/renderers --output=tables

See tf_autoctx/commands/renderer_tables.py, or --help.
"""

from tf_autoctx.commands.renderer_tables import command

if __name__ == "__main__":
    command()
