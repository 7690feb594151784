"""Settings that are compared: what a request says, and what its server was started with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.config.methods import METOK
from metok_vllm.config.presets import PRESETS
from metok_vllm.console import complain
from metok_vllm.errors import ConfigError

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One way to answer. `line` is the rule it belongs to: settings of a line are joined in charts.

    `request` is the `metok` object of its requests (None: the server's own settings).
    `frames_share` below 1 asks with that share of the frames. `server` are fields of METokConfig
    that the server must be started with. `equal_to` names the setting whose KV cache this one is
    to be as large as.
    """

    name: str
    line: str
    request: Fields | None = None
    frames_share: float = 1.0
    server: Fields = field(default_factory=dict)
    equal_to: str | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if not 0 < self.frames_share <= 1:
            raise ConfigError(f"frames_share must be in (0, 1], got {self.frames_share}", self.name)
        known = {f.name for f in fields(METokConfig)}
        for name in self.server:
            if name not in known:
                raise ConfigError(f"{self.name}: {name!r} is no setting of a server", name)

    def _check_types(self) -> None:
        def require(ok: bool, name: str, wanted: str) -> None:
            if not ok:
                got = f"{getattr(self, name)!r:.80}"
                raise ConfigError(f"{self.name}: {name} must be {wanted}, got {got}", name)

        require(isinstance(self.name, str), "name", "text")
        require(isinstance(self.line, str), "line", "text")
        share = self.frames_share
        number = isinstance(share, int | float) and not isinstance(share, bool)
        require(number, "frames_share", "a number")
        require(isinstance(self.request, Mapping | None), "request", "an object")
        require(isinstance(self.server, Mapping), "server", "an object")
        require(isinstance(self.equal_to, str | None), "equal_to", "the name of a setting")

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
DECODE_KEEPS = (0.0, 0.1, 0.25, 0.5, 1.0)
DENSE = Setting("dense", "dense", OFF)
AS_SERVED = Setting("as served", "METok")


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


def ablations(preset: str = "balanced") -> list[Setting]:
    """Dense, a preset, and the preset with one thing about it changed."""
    found = [DENSE, Setting(preset, "METok", {"preset": preset})]
    for share in DECODE_KEEPS:
        request = {"preset": preset, "decode_keep": share}
        found.append(Setting(f"decode_keep {share:g}", "decode_keep", request))
    for mode in ("shared", "none"):
        server = {"alignment_mode": mode}
        found.append(Setting(f"alignment {mode}", "alignment", {"preset": preset}, server=server))
    return found


def pooling(stride: int, num_events: int = 1) -> Setting:
    """Every frame at one stride; the newline stands at the end, as in the dense input."""
    request: dict[str, Any] = {"stages": [1], "strides": [stride] * 3, "num_events": num_events}
    # Whatever rule the server has, and if it is off.
    request |= {"enabled": True, "rule": METOK}
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
    for setting in settings:
        if setting.equal_to is not None and setting.equal_to not in names:
            raise ConfigError(f"{setting.name}: no setting {setting.equal_to!r}", "equal_to")
    return list(settings)


def for_server(settings: Sequence[Setting], config: METokConfig | None, own: bool) -> list[Setting]:
    """The settings, with the server's own where `own` says that somebody has made it.

    Those that a server with `config` (None: not known) would refuse are left out and named on
    stderr, and with them what was to be equal to them.
    """
    found = list(settings)
    if own and AS_SERVED not in found:
        found.append(AS_SERVED)
    refused = set()
    for setting in found:
        try:
            if config is not None:
                request_config(config, setting)
        except ConfigError as error:
            refused.add(setting.name)
            complain(f"{setting.name} is left out, the server would refuse it: {error}")
    for setting in found:
        if setting.equal_to in refused and setting.name not in refused:
            complain(f"{setting.name} is left out, there is no {setting.equal_to} to be equal to")
    return checked([s for s in found if not {s.name, s.equal_to} & refused])


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
