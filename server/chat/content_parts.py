"""Media parts of chat messages, checked and rewritten before vLLM reads them.

vLLM takes a client's `uuid` as the name of the media in caches that all clients share. Here it
names media of one tenant only: what is sent under it is kept, and sent alone it stands for that.
vLLM never sees it, so an item's identity is always its content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from metok_vllm.errors import ConfigError
from metok_vllm.server.media.named import keep_url, named_url

UUID = "uuid"
MAX_UUID = 256
URL_PARTS = {"image_url": "image", "video_url": "video", "audio_url": "audio"}
OTHER_MEDIA = frozenset(
    {"input_audio", "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil"}
)


def checked_messages(messages: list[Any], tenant: str) -> list[Any]:
    """Messages with their media parts in one form and without `uuid`.

    Raises ConfigError, naming the part, for one that is not of the documented form.
    """
    return [_message(message, f"messages.{i}", tenant) for i, message in enumerate(messages)]


def named_media(body: Any) -> bool:
    """Whether any object in a JSON body gives media a uuid."""
    return any(
        node.get(UUID) is not None
        and (node.get("type") in URL_PARTS or URL_PARTS.keys() & node or OTHER_MEDIA & node.keys())
        for node in objects(body)
    )


def objects(body: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON value, the outer ones first."""
    waiting = [body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _message(message: Any, where: str, tenant: str) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return message
    parts = [_part(part, f"{where}.content.{i}", tenant) for i, part in enumerate(content)]
    return {**message, "content": parts}


def _part(part: Any, where: str, tenant: str) -> Any:
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    if kind is not None and not isinstance(kind, str):
        raise ConfigError("the type of a content part must be a string", f"{where}.type")
    name = part.get(UUID)
    keys = [key for key in URL_PARTS if key in part]
    if name is None:
        if len(keys) != 1 or kind not in (None, keys[0]):
            return part
        return {**part, "type": keys[0], keys[0]: _sent(part, keys[0], where)}
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_UUID:
        raise ConfigError(f"uuid must be a string of 1 to {MAX_UUID} characters", f"{where}.{UUID}")
    if len(keys) != 1 or kind not in (None, keys[0]):
        raise ConfigError(
            f"a part with a uuid needs one of {', '.join(URL_PARTS)}, and that as its type", where
        )
    key, modality = keys[0], URL_PARTS[keys[0]]
    url = _sent(part, key, where)["url"]
    url = keep_url(tenant, modality, name, url) if url else named_url(tenant, modality, name)
    rest = {field: value for field, value in part.items() if field != UUID}
    return {**rest, "type": key, key: {"url": url}}


def _sent(part: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """The object with the URL that stands under `key`; its url is None where none was sent."""
    value = part[key]
    url = value.get("url") if isinstance(value, Mapping) else value
    if url is not None and not isinstance(url, str):
        raise ConfigError(f"{key} must hold its url as a string", f"{where}.{key}")
    if url is None and part.get(UUID) is None:
        raise ConfigError(f"{key} holds no url", f"{where}.{key}")
    return {**(value if isinstance(value, Mapping) else {}), "url": url}
