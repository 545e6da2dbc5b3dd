"""Fetal head in 2D ultrasound of a scanner that was never learnt: S2T (Yang et al. 2018)."""
