"""A pruning stage as a KV cache group of vLLM: what it holds, and how tails return to the pool."""
