"""Tensor operations of METok on torch and Triton; usable without vLLM. One folder each."""
