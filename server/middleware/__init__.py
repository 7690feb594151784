"""What a request passes before its route: keys, limits, deadlines, the error envelope."""
