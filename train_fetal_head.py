"""Whole fetal head in 3D ultrasound: trains USegNet-DS-HAS-Ctx (Yang et al. 2019) level by level.

python train_fetal_head.py --level=2                       # on phantoms
python train_fetal_head.py --level=2 --data_dir=my_data    # a Decathlon or nnU-Net folder, a CSV
python train_fetal_head.py --preset=paper --data_dir=my_data
"""

from tf_autoctx.commands.train_fetal_head import command

if __name__ == "__main__":
    command()
