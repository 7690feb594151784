"""Settings that are compared: what a request says, and what its server was started with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.errors import ConfigError
from metok_vllm.presets import PRESETS

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One way to answer. `line` is the rule it belongs to: settings of a line are joined in charts.

    `request` is the `metok` object of its requests (None: the server's own settings).
    `frames_share` below 1 asks with that share of the frames. `server` are fields of METokConfig
    that the server must be started with.
    """

    name: str
    line: str
    request: Fields | None = None
    frames_share: float = 1.0
    server: Fields = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.frames_share <= 1:
            raise ConfigError(f"frames_share must be in (0, 1], got {self.frames_share}", self.name)
        known = {f.name for f in fields(METokConfig)}
        for name in self.server:
            if name not in known:
                raise ConfigError(f"{self.name}: {name!r} is no setting of a server", name)

    @property
    def is_dense(self) -> bool:
        """Whether it is what everything is compared with."""
        return self.request == OFF and self.frames_share == 1

    def frames(self, wanted: int, video_frames: int) -> int:
        """Frames to ask with, where `wanted` of the video's frames are looked at."""
        return max(1, round(self.frames_share * min(wanted, video_frames)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


OFF = {"enabled": False}
STAGES = "METok's stages"  # a line whose settings have no order
DENSE = Setting("dense", "dense", OFF)


def presets(names: Iterable[str]) -> list[Setting]:
    """Dense and METok's presets. Raises ConfigError for one that does not exist."""
    found = [DENSE]
    for name in names:
        if name not in PRESETS or name == "off":
            known = ", ".join(preset for preset in PRESETS if preset != "off")
            raise ConfigError(f"no preset {name!r} to measure; there are {known}", "presets")
        found.append(Setting(name, "METok", {"preset": name}))
    return found


def stages(preset: str = "balanced") -> list[Setting]:
    """Dense and every subset of METok's stages."""
    subsets = ([1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3])
    return [DENSE, *(_stages(preset, subset) for subset in subsets)]


def pooling(stride: int, num_events: int = 1) -> Setting:
    """Every frame at one stride; the newline stands at the end, as in the dense input."""
    request = {"stages": [1], "strides": [stride] * 3, "num_events": num_events}
    return Setting(f"pool {stride}", "uniform pooling", request)


def read_settings(path: Path) -> list[Setting]:
    """Settings from a JSON list of objects with the fields of Setting; dense is added in front."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "settings") from error
    except ValueError as error:
        raise ConfigError(f"{path.name} is not JSON: {error}", "settings") from error
    if not isinstance(content, list):
        raise ConfigError(f"{path.name} must hold a list of settings", "settings")
    known = {f.name for f in fields(Setting)}
    found = []
    for entry in content:
        if not isinstance(entry, dict) or not {"name"} <= entry.keys() <= known:
            wanted = ", ".join(sorted(known))
            raise ConfigError(f"a setting has a name and of {wanted}; got {entry!r:.80}")
        found.append(Setting(**{"line": entry["name"], **entry}))
    return checked([DENSE, *(setting for setting in found if setting != DENSE)])


def checked(settings: Sequence[Setting]) -> list[Setting]:
    """The settings, where dense comes first and no name comes twice. Raises ConfigError."""
    if not settings or not settings[0].is_dense or settings[0].server:
        raise ConfigError("the first setting must be dense on a server without changes", "settings")
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two settings are called {name!r}", "settings")
    return list(settings)


def request_config(base: METokConfig, setting: Setting) -> METokConfig:
    """The METok configuration that a setting's requests run under on a server with `base`.

    Raises ConfigError as the server would.
    """
    request = {k: v for k, v in (setting.request or {}).items() if k in REQUEST_FIELDS}
    return base.updated(setting.server).for_request(request)


def server_key(setting: Setting) -> str:
    """Equal for settings that can share a server."""
    return json.dumps(dict(setting.server), sort_keys=True)


def _stages(preset: str, subset: Sequence[int]) -> Setting:
    name = "stages " + "+".join(map(str, subset)) if len(subset) > 1 else f"stage {subset[0]}"
    return Setting(name, STAGES, {"preset": preset, "stages": list(subset)})
