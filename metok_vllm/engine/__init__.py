"""METok inside vLLM: the only package that touches vLLM's core."""
