"""Calibration: which layers of a model still need its visual tokens, found without labels."""
