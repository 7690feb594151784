"""Naive METok: ground truth for the tests, written from the method's definition alone."""

from metok_vllm.torch_shims import ensure_torchvision_ops

# transformers imports torchvision, which may be compiled for another torch.
ensure_torchvision_ops()
