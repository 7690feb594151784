"""transformers can be imported only after torchvision's operators are registered."""

from metok_vllm.torch_shims import ensure_torchvision_ops

ensure_torchvision_ops()
