"""Tables 1 and 2 of the multi-organ system (Roth et al. 2018): the three modes side by side.

  python eval/multi_organ_tables.py --runs=runs/end_to_end,runs/separate,runs/no_context \\
      --output=runs/tables
  python eval/multi_organ_tables.py --runs=runs/end_to_end --output=runs/unseen \\
      --other_data=other --label_map=3:1,4:2
  python eval/multi_organ_tables.py --seeds=0,1,2,3,4 --runs=runs/organs --output=runs/tables

See tf_autoctx/commands/multi_organ_tables.py, or --help.
"""

from tf_autoctx.commands.multi_organ_tables import command

if __name__ == "__main__":
    command()
