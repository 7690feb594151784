"""Settings: fields, checks, presets, names of methods, and the one reader of the environment."""

from metok_vllm.config.fields import CONFIG_FILE, REQUEST_FIELDS, STAGE_OF_FIELD, METokConfig

__all__ = ["CONFIG_FILE", "REQUEST_FIELDS", "STAGE_OF_FIELD", "METokConfig"]
