"""The settings to compare: fields of the request and fields that the server starts with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.config.methods import FOCUSES, METOK, VCAST, VIDCOM2
from metok_vllm.config.presets import PRESETS
from metok_vllm.console import complain
from metok_vllm.errors import ConfigError

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting to measure. Charts join the settings of one `line`.

    `request` is the `metok` object of its requests (None: the server's own settings).
    `frames_share` below 1 samples that share of the frames. `server` are fields of METokConfig
    that the server must be started with. `equal_to` names the setting whose KV cache this one
    matches in size. `earlier` questions about the same video, with their right answers, come before
    in the conversation. Raises ConfigError for invalid values.
    """

    name: str
    line: str
    request: Fields | None = None
    frames_share: float = 1.0
    server: Fields = field(default_factory=dict)
    equal_to: str | None = None
    earlier: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        if not 0 < self.frames_share <= 1:
            raise ConfigError(f"frames_share must be in (0, 1], got {self.frames_share}", self.name)
        known = {f.name for f in fields(METokConfig)}
        for name in self.server:
            if name not in known:
                raise ConfigError(f"{self.name}: {name!r} is no setting of a server", name)

    def _check_types(self) -> None:
        share = self.frames_share
        earlier = self.earlier
        checks = {
            "earlier": (isinstance(earlier, int) and earlier in range(17), "0 to 16"),
            "name": (isinstance(self.name, str), "text"),
            "line": (isinstance(self.line, str), "text"),
            "frames_share": (
                isinstance(share, int | float) and not isinstance(share, bool),
                "a number",
            ),
            "request": (isinstance(self.request, Mapping | None), "an object"),
            "server": (isinstance(self.server, Mapping), "an object"),
            "equal_to": (isinstance(self.equal_to, str | None), "the name of a setting"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                got = f"{getattr(self, name)!r:.80}"
                raise ConfigError(f"{self.name}: {name} must be {wanted}, got {got}", name)

    @property
    def is_dense(self) -> bool:
        """Whether this is the reference: METok off and all frames."""
        return self.request == OFF and self.frames_share == 1

    def frames(self, wanted: int, video_frames: int) -> int:
        """Frames to sample of a video when the reference samples `wanted`."""
        return max(1, round(self.frames_share * min(wanted, video_frames)))


OFF = {"enabled": False}
STAGES = "METok's stages"  # the settings of this line have no order
DECODE_KEEPS = (0.0, 0.1, 0.25, 0.5, 1.0)
DENSE = Setting("dense", "dense", OFF)
AS_SERVED = Setting("as served", "METok")


def presets(names: Iterable[str]) -> list[Setting]:
    """Dense and METok's presets. Raises ConfigError for an unknown preset."""
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
    """Dense, a preset, and the preset with one field changed at a time."""
    found = [DENSE, Setting(preset, "METok", {"preset": preset})]
    for share in DECODE_KEEPS:
        request = {"preset": preset, "decode_keep": share}
        found.append(Setting(f"decode_keep {share:g}", "decode_keep", request))
    for mode in ("shared", "none"):
        server = {"alignment_mode": mode}
        found.append(Setting(f"alignment {mode}", "alignment", {"preset": preset}, server=server))
    return found


PAPER = {
    "num_events": 5,
    "key_event_ratio": 0.6,
    "key_frames_per_event": 6,
    "strides": [2, 4, 8],
    "keep_ratio": 0.76,
    "decode_keep": 0.0,
}
# The demo's presets make every event a key event, the paper's values three of five.
TURNS: dict[str, dict[str, Any]] = {
    "balanced": {"preset": "balanced"},
    "paper": PAPER,
    "max": {"preset": "max"},
}


def second_turns() -> list[Setting]:
    """The second question of a conversation under each focus, and rules that read no question."""
    found = [
        DENSE,
        Setting("dense, second turn", "dense", OFF, earlier=1),
        Setting("balanced, first turn", "balanced", TURNS["balanced"]),
    ]
    for name, request in TURNS.items():
        for focus in FOCUSES:
            fields = {**request, "focus": focus}
            found.append(Setting(f"{name}, {focus}", name, fields, earlier=1))
    for rule in (VCAST, VIDCOM2):
        fields = {"rule": rule, "rule_keep": 0.36}  # about the KV cache of balanced
        found.append(Setting(rule, rule, fields, earlier=1))
    return found


def pooling(stride: int, num_events: int = 1) -> Setting:
    """Every frame pooled at one stride; the newline comes last, as in the dense input."""
    request: dict[str, Any] = {"stages": [1], "strides": [stride] * 3, "num_events": num_events}
    # Overrides a server that is off or uses another rule.
    request |= {"enabled": True, "rule": METOK}
    return Setting(f"pool {stride}", "uniform pooling", request)


def read_settings(path: Path) -> list[Setting]:
    """Settings from a JSON list of objects with the fields of Setting, after dense."""
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
    """The same settings. Raises ConfigError unless dense is first and names are unique."""
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
    """The settings that a server with `config` accepts (None: unknown, all of them).

    Refused ones, and those with equal KV to a refused one, are left out and reported on stderr.
    `own` adds the server's own settings, which a user has configured.
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
    """The METok configuration of a setting's requests on a server with `base`.

    Raises ConfigError as the server does.
    """
    request = {k: v for k, v in (setting.request or {}).items() if k in REQUEST_FIELDS}
    return base.updated(setting.server).for_request(request)


def server_key(setting: Setting) -> str:
    """Equal for settings that can share a server."""
    return json.dumps(dict(setting.server), sort_keys=True)


def _stages(preset: str, subset: Sequence[int]) -> Setting:
    name = "stages " + "+".join(map(str, subset)) if len(subset) > 1 else f"stage {subset[0]}"
    return Setting(name, STAGES, {"preset": preset, "stages": list(subset)})
