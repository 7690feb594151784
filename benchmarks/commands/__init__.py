"""`metok bench` and `metok calibrate`."""
