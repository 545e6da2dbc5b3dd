"""Organs and vessels in CT: trains a pyramid of 3D U-Nets with auto-context (Roth et al. 2018).

python train_multi_organ.py --mode=end_to_end --levels=2           # on phantoms
python train_multi_organ.py --data_dir=my_cts                      # CTs of 0.6 to 1 mm
python train_multi_organ.py --data_dir=my_cts --downsampling=2,1   # data that is coarse already
python train_multi_organ.py --preset=paper --data_dir=my_cts
"""

from tf_autoctx.commands.train_multi_organ import command

if __name__ == "__main__":
    command()
