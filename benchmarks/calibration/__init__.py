"""`metok calibrate`: the layers at which a model can lose visual tokens, found without labels."""
