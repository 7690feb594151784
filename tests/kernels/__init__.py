"""Every operation of `metok_vllm.kernels` against naive loops."""
