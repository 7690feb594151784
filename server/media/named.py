"""A cache of media by the name (`uuid`) that a client gives them, for later requests.

A name belongs to one tenant and one modality. The chat endpoint turns a name into an internal URL
that clients cannot guess. The media connector stores what such a URL loads, or looks it up.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from metok_vllm.video.limits import Transport

# Clients do not have this, so only this process can make such a URL.
_SECRET = secrets.token_hex(16)
KEEP, FIND = f"metok-keep:{_SECRET}:", f"metok-find:{_SECRET}:"


@dataclass(frozen=True)
class EncodedMedia:
    """A file's bytes, or a frame list as in its data URL (base64, comma-separated)."""

    data: bytes
    is_frame_list: bool = False
    transport: Transport = Transport.DATA


def keep_url(tenant: str, modality: str, name: str, url: str) -> str:
    """An internal URL that loads `url` and stores its media under a name."""
    return f"{KEEP}{key_of(tenant, modality, name)},{url}"


def named_url(tenant: str, modality: str, name: str) -> str:
    """An internal URL that loads what is stored under a name."""
    return FIND + key_of(tenant, modality, name)


def split_keep(url: str) -> tuple[str | None, str]:
    """The key to store under, None for nothing to store, and the URL to load."""
    if not url.startswith(KEEP):
        return None, url
    key, _, inner = url.removeprefix(KEEP).partition(",")
    return key, inner


def key_of(tenant: str, modality: str, name: str) -> str:
    """A hash of a name, its tenant and its modality."""
    return hashlib.sha256(json.dumps([tenant, modality, name]).encode()).hexdigest()


class NamedMedia:
    """An LRU cache of encoded media; thread-safe. `held_bytes` is its size."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, EncodedMedia] = OrderedDict()
        self.held_bytes = 0

    def put(self, key: str, media: EncodedMedia | None, max_bytes: int) -> None:
        """Store media, evicting the least recently used down to `max_bytes`.

        None and media over `max_bytes` are not stored, and an older entry of the key is removed.
        """
        with self._lock:
            self._pop(key)
            if media is None or len(media.data) > max_bytes:
                return
            self._entries[key] = media
            self.held_bytes += len(media.data)
            while self.held_bytes > max_bytes:
                self._pop(next(iter(self._entries)))

    def get(self, key: str) -> EncodedMedia | None:
        """The media of a key, None if there are none."""
        with self._lock:
            media = self._entries.get(key)
            if media is not None:
                self._entries.move_to_end(key)
            return media

    def _pop(self, key: str) -> None:
        media = self._entries.pop(key, None)
        if media is not None:
            self.held_bytes -= len(media.data)


NAMED = NamedMedia()
