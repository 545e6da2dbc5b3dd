"""Whole fetal head in 3D ultrasound: USegNet-DS-HAS-Ctx (Yang et al. 2019)."""
