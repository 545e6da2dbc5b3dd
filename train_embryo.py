"""Mouse embryo body and ventricle in 3D ultrasound: trains the refinement of Xu et al. 2020.

  python train_embryo.py                                            # on phantoms, all stages
  python train_embryo.py --data_dir=my_embryos --foreground=1,2     # the body's label value, then
                                                                    # the ventricle's
  python train_embryo.py --stage=initial && python train_embryo.py --stage=refine
  python train_embryo.py --noauto_context --initial_from=runs/embryo \\
      --work_dir=runs/embryo_no_context
  python train_embryo.py --preset=paper --data_dir=my_embryos
"""

from tf_autoctx.commands.train_embryo import command

if __name__ == "__main__":
    command()
