"""Settings: fields, checks, presets, names of methods, and the one reader of the environment."""

from metok_vllm.config.fields import METokConfig
from metok_vllm.config.request_fields import REQUEST_FIELDS, STAGE_OF_FIELD
from metok_vllm.config.sources import CONFIG_FILE

__all__ = ["CONFIG_FILE", "REQUEST_FIELDS", "STAGE_OF_FIELD", "METokConfig"]
