"""Model names that choose a preset: `NAME:max` is the served model NAME with the preset `max`.

A client that can only name a model chooses METok's settings this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelPermission

from metok_vllm.config import METokConfig
from metok_vllm.config.presets import OFF, PRESETS
from metok_vllm.errors import ConfigError


@dataclass(frozen=True)
class ModelAliases:
    """The aliases of a server: each with the served name that it stands for, and its preset."""

    targets: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str], config: METokConfig | None) -> ModelAliases:
        """An alias per served name and preset; none without METok.

        A name that is served itself stays a plain name.
        """
        if config is None:
            return cls()
        names = list(names)
        presets = dict.fromkeys((*PRESETS, *(config.presets or {})))
        targets = {f"{name}:{preset}": (name, preset) for name in names for preset in presets}
        return cls({alias: target for alias, target in targets.items() if alias not in names})

    def __contains__(self, name: object) -> bool:
        return name in self.targets

    def settings(self, model: str | None, given: dict[str, Any] | None) -> dict[str, Any] | None:
        """The `metok` field of a request for `model`: `given`, with the preset of an alias.

        None if neither is there. Raises ConfigError where a given preset or `enabled` contradicts
        the alias; all other given fields override the preset's values.
        """
        if model is None or model not in self:
            return given
        name, preset = self.targets[model]
        given = given or {}
        if given.get("preset") not in (None, preset):
            raise ConfigError(
                f"the model name {model} chooses the preset {preset!r}, which contradicts "
                f"metok.preset; ask for the model {name} to set the preset in the request",
                "preset",
            )
        if given.get("enabled") is (preset == OFF):
            raise ConfigError(
                f"the model name {model} chooses the preset {preset!r}, which contradicts "
                f"metok.enabled {str(preset == OFF).lower()}",
                "enabled",
            )
        return {**given, "preset": preset}

    def cards(self, served: Iterable[ModelCard]) -> list[ModelCard]:
        """Entries of `/v1/models`: the root of the served model, which is their parent."""
        by_name = {card.id: card for card in served}
        return [
            ModelCard(
                id=alias,
                root=by_name[name].root,
                parent=name,
                max_model_len=by_name[name].max_model_len,
                permission=[ModelPermission()],
            )
            for alias, (name, _) in self.targets.items()
            if name in by_name
        ]


NO_ALIASES = ModelAliases()
