"""The messages of a chat request: their videos, their question, and media parts for vLLM.

vLLM uses a client's `uuid` as the media's identity in caches that all clients share. Here a uuid
belongs to one tenant, and vLLM never receives it, so the identity is always the content. Media
sent with a uuid are stored, and a later part with only the uuid loads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metok_vllm.config.methods import CONVERSATION, TURN
from metok_vllm.errors import ConfigError
from metok_vllm.models.query import PROMPT_TEXT, USER_TURN
from metok_vllm.server.media.named import keep_url, named_url
from metok_vllm.server.media.part_urls import is_frames_url, sample_url

UUID = "uuid"
MAX_UUID = 256
# Names that clients give to the number of frames of one video (VLMEvalKit: `nframe`).
FRAME_COUNTS = ("num_frames", "nframes", "nframe")
URL_PARTS = {"image_url": "image", "video_url": "video", "audio_url": "audio"}
OTHER_MEDIA = frozenset(
    {"input_audio", "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil"}
)
# Messages that may hold the question if the user wrote no text.
INSTRUCTION_ROLES = frozenset({"system", "developer"})


def count_videos(messages: Any) -> int:
    """Video parts in the messages of a request."""
    return len(list(_video_parts(messages)))


def videos_of_images(messages: Any) -> tuple[bool, ...]:
    """For each video of checked and folded messages, whether it was sent as a run of images."""
    return tuple(is_frames_url(_url(part, "video_url")) for part in _video_parts(messages))


def _url(part: Mapping[str, Any], key: str) -> str:
    """The URL of a checked part, empty in a part that vLLM will refuse."""
    value = part.get(key)
    url = value.get("url") if isinstance(value, Mapping) else None
    return url if isinstance(url, str) else ""


def _video_parts(messages: Any) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        for part in content_parts(message):
            if isinstance(part, Mapping):
                kind = part.get("type")
                if kind == "video_url" or (kind is None and "video_url" in part):
                    yield part


def question_of(messages: Any, focus: str = TURN) -> tuple[str, str]:
    """The question and its source as QueryFinder names sources; ("", "") if there is none.

    A user's turn may be several messages, such as a caption and a video. So the question is all
    user text since the last answer, else of an earlier turn, else the instructions. The question of
    a conversation is that of its first turn with a video, else of a later one.
    """
    turns = _user_turns(messages)
    if focus == CONVERSATION:
        filmed = (i for i, turn in enumerate(turns) if count_videos(turn))
        first = next(filmed, 0)
        turns = [*turns[:first], *reversed(turns[first:])]
    for turn in reversed(turns):
        if text := _joined(turn):
            return text, USER_TURN
    text = _joined([message for message in messages if _role(message) in INSTRUCTION_ROLES])
    return (text, PROMPT_TEXT) if text else ("", "")


def _user_turns(messages: Any) -> list[list[Any]]:
    """Messages of the user between two answers, in order; tool results end no turn."""
    turns: list[list[Any]] = [[]]
    for message in messages:
        role = _role(message)
        if role == "assistant":
            turns.append([])
        elif role == "user":
            turns[-1].append(message)
    return turns


def _joined(messages: Sequence[Any]) -> str:
    texts = ("\n".join(_texts(message)).strip() for message in messages)
    return "\n".join(text for text in texts if text)


def _texts(message: Any) -> Iterator[str]:
    content = _content(message)
    if isinstance(content, str):
        yield content
    for part in content_parts(message):
        text = part.get("text") if isinstance(part, Mapping) else None
        if isinstance(text, str) and part.get("type") == "text":
            yield text


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _content(message: Any) -> Any:
    return message.get("content") if isinstance(message, Mapping) else None


def content_parts(message: Any) -> list[Any]:
    """The parts of a message; none where its content is text."""
    content = _content(message)
    return content if isinstance(content, list) else []


def checked_messages(messages: list[Any], tenant: str) -> list[Any]:
    """Messages whose media parts have one form and no `uuid`.

    Raises ConfigError, which names the part, for a part in an undocumented form.
    """
    return [_checked(message, f"messages.{i}", tenant) for i, message in enumerate(messages)]


def _checked(message: Any, where: str, tenant: str) -> Any:
    if not isinstance(_content(message), list):
        return message
    parts = enumerate(content_parts(message))
    return {
        **message,
        "content": [_checked_part(part, f"{where}.content.{i}", tenant) for i, part in parts],
    }


def _checked_part(part: Any, where: str, tenant: str) -> Any:
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    if kind is not None and not isinstance(kind, str):
        raise ConfigError("the type of a content part must be a string", f"{where}.type")
    name = part.get(UUID)
    keys = [key for key in URL_PARTS if key in part]
    has_one_url = len(keys) == 1 and kind in (None, keys[0])
    if name is None:
        if not has_one_url:
            return part
        value = _url_object(part, keys[0], where)
        options = _sampling(part, keys[0])
        if options:
            value = {"url": sample_url(options, value["url"])}
        return {**part, "type": keys[0], keys[0]: value}
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_UUID:
        raise ConfigError(f"uuid must be a string of 1 to {MAX_UUID} characters", f"{where}.{UUID}")
    if not has_one_url:
        raise ConfigError(
            f"a part with a uuid needs one of {', '.join(URL_PARTS)}, and that as its type", where
        )
    key, modality = keys[0], URL_PARTS[keys[0]]
    url = _url_object(part, key, where)["url"]
    url = keep_url(tenant, modality, name, url) if url else named_url(tenant, modality, name)
    if options := _sampling(part, key):
        url = sample_url(options, url)
    rest = {field: value for field, value in part.items() if field != UUID}
    return {**rest, "type": key, key: {"url": url}}


def _sampling(part: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The `num_frames` and `fps` that a client sends with one video, in its part or its object.

    Pixel budgets (`min_pixels`, `max_pixels`) are of models with other processors, and ignored.
    """
    if key != "video_url":
        return {}
    inner = part[key] if isinstance(part[key], Mapping) else {}
    given = {**{k: v for k, v in part.items() if k != key}, **inner}
    options = {name: given[name] for name in ("fps",) if given.get(name) is not None}
    counts = [given[name] for name in FRAME_COUNTS if given.get(name) is not None]
    return {"num_frames": counts[0], **options} if counts else options


def _url_object(part: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """The object under `key`; its url may be None only where the part has a uuid."""
    value = part[key]
    url = value.get("url") if isinstance(value, Mapping) else value
    if url is not None and not isinstance(url, str):
        raise ConfigError(f"{key} must hold its url as a string", f"{where}.{key}")
    if url is None and part.get(UUID) is None:
        raise ConfigError(f"{key} holds no url", f"{where}.{key}")
    return {**(value if isinstance(value, Mapping) else {}), "url": url}


def has_named_media(body: Any) -> bool:
    """Whether any object in a JSON body gives media a uuid."""
    return any(
        node.get(UUID) is not None
        and (node.get("type") in URL_PARTS or URL_PARTS.keys() & node or OTHER_MEDIA & node.keys())
        for node in objects(body)
    )


def objects(body: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON value, outer before inner."""
    pending = [body]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield node
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
