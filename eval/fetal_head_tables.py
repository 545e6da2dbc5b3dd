r"""Tables 1 and 2 of the fetal head system (Yang et al. 2019), trained where runs are missing.

  python eval/fetal_head_tables.py --steps=2000 --phantom_size=96,96,96 --base_filters=8 --jobs=2 \
      --runs=runs/fetal_heads --output=runs/fetal_head_tables
  python eval/fetal_head_tables.py --steps=4000 --data_dir=my_data \
      --variants=USegNet,USegNet-DS-HAS-Ctx ...
"""

from tf_autoctx.commands.fetal_head_tables import command

if __name__ == "__main__":
    command()
