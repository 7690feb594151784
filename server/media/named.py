"""Media that clients give a name (`uuid`), kept as sent for requests that name them alone.

A name belongs to one tenant and one modality. The chat endpoint turns names into URLs that only it
can make; the media connector keeps what such a URL loads, or finds it again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

# A URL with this in it was made here: clients cannot know it.
_SECRET = secrets.token_hex(16)
KEEP, FIND = f"metok-keep:{_SECRET}:", f"metok-find:{_SECRET}:"


@dataclass(frozen=True)
class Kept:
    """Encoded media: a file's bytes, or a list of frames as it stands in its data URL."""

    data: bytes
    is_frame_list: bool = False


def keep_url(tenant: str, modality: str, name: str, url: str) -> str:
    """A URL that loads `url` and keeps its media under a name."""
    return f"{KEEP}{key_of(tenant, modality, name)},{url}"


def named_url(tenant: str, modality: str, name: str) -> str:
    """A URL that loads what was kept under a name."""
    return FIND + key_of(tenant, modality, name)


def split_keep(url: str) -> tuple[str | None, str]:
    """Key to keep under, None where nothing is to be kept, and the URL to load."""
    if not url.startswith(KEEP):
        return None, url
    key, _, inner = url.removeprefix(KEEP).partition(",")
    return key, inner


def key_of(tenant: str, modality: str, name: str) -> str:
    """One key for a name; no part of it can be read back."""
    return hashlib.sha256(json.dumps([tenant, modality, name]).encode()).hexdigest()


class NamedMedia:
    """Media by key, at most `most_bytes` of them as each call says; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Kept] = OrderedDict()
        self.held_bytes = 0

    def keep(self, key: str, media: Kept, most_bytes: int) -> None:
        """Keep media in place of what had the key, dropping the least recently used first.

        Media over `most_bytes` are not kept, and nothing has the key then.
        """
        with self._lock:
            self._pop(key)
            if len(media.data) > most_bytes:
                return
            self._entries[key] = media
            self.held_bytes += len(media.data)
            while self.held_bytes > most_bytes:
                self._pop(next(iter(self._entries)))

    def find(self, key: str) -> Kept | None:
        """What is kept under a key."""
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
