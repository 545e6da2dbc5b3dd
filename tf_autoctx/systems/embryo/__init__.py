"""Mouse embryo body and ventricle in 3D ultrasound: auto-context refinement (Xu et al. 2020)."""
