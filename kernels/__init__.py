"""Tensor operations of METok on torch alone; usable without vLLM. One folder per operation."""
