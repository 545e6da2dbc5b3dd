"""Abdominal organs in CT: a pyramid of 3D U-Nets with auto-context (Roth et al. 2018)."""
