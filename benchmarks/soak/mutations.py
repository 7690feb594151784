"""Random mutations of a valid request: its structure, media, METok fields and bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

from metok_vllm.benchmarks.soak.requests import Request, good_request

MANY = 20_000
JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    10**30,
    "",
    " ",
    "a" * 1000,
    "\x00",
    "<|im_start|>",
    "%s{}",
    [],
    {},
    [None],
    [[[[]]]],
    {"": {}},
    {"type": "video_url"},
    {"url": 1},
)
METOK = {
    "enabled": (True, False, "on", None),
    "preset": ("quality", "balanced", "max", "off", "best", 1),
    "stages": ([], [1], [2, 3], [1, 1], [4], "1", [True]),
    "num_events": (0, 1, 5, 10**9, 2.5, "5"),
    "key_event_ratio": (0, 0.5, 1, 2, -1, "0.5"),
    "key_frames_per_event": (0, 1, 0.5, 10**9, -3),
    "strides": ([1, 1, 1], [2, 4, 8], [8, 4, 2], [2, 4], [10**9] * 3, "2"),
    "reduce": ("pool", "select", "resize", "none", 1),
    "keep_ratio": (0, 0.5, 1, 1.5, "0.5"),
    "decode_keep": (0, 0.5, 1, -1),
    "rule": ("metok", "random", "evs", "vidcom2", "vcast", "fastv", "none"),
    "rule_keep": (0, 0.01, 0.5, 1, 2),
    "pruning_layers": ([1, 2, 3], None),
    "junk": (1,),
}
PARAMETERS = {
    "temperature": (-1, 0, 1e9, "0"),
    "top_p": (0, 1, 2, -1),
    "top_k": (0, -1, 10**9),
    "n": (0, 1, 2, 10**6),
    "max_tokens": (0, -1, 1, 10**9),
    "min_tokens": (-1, 3, 10**9),
    "logprobs": (True, 5),
    "top_logprobs": (0, 5, 10**6),
    "prompt_logprobs": (0, 1, 10**6),
    "logit_bias": ({"999999999": 1}, {"a": 1}, {"5": 1000}),
    "stop": ("", ["a"] * 100, [1]),
    "stop_token_ids": ([10**9], [-1], ["a"]),
    "bad_words": ([""], ["a" * 1000]),
    "seed": (-1, 2**70),
    "response_format": ({"type": "json_object"}, {"type": "json_schema"}, 5),
    "structured_outputs": ({"regex": "("}, {"json": "{"}, " ", {"choice": []}),
    "tools": ([], [{}], [{"type": "function", "function": {"name": "f"}}], 5),
    "tool_choice": ("auto", "required", {"type": "function"}, 5),
    "truncate_prompt_tokens": (1, -1, 0, 10**9),
    "use_beam_search": (True,),
    "echo": (True,),
    "cache_salt": ("", "a" * 1000, 5),
    "media_io_kwargs": ({"video": {"num_frames": 10**9}}, {"video": 5}, {"audio": {}}, 5),
    "mm_processor_kwargs": ({"metok": {}}, {"a": 1}, 5),
    "chat_template": ("{{ 1/0 }}", "{% for"),
    "chat_template_kwargs": ({"a": 1}, 5),
    "add_generation_prompt": (False, "a"),
    "continue_final_message": (True,),
    "stream": (True, "a"),
    "stream_options": ({}, {"include_usage": "a"}, 5),
    "model": ("other", "a" * 1000, 5, None),
    "priority": (2**70, "a"),
    "request_id": ("a", 5),
    "kv_transfer_params": ({}, 5),
}

Mutation = Callable[[Random, Request], None]


def mutated_request(seed: int, model: str) -> Request:
    """Request number `seed`: a valid request with zero to three random mutations."""
    rng = Random(seed)
    request = good_request(rng, model)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        mutation = rng.choice(MUTATIONS)
        request.why.append(mutation.__name__.removeprefix("_"))
        mutation(rng, request)
    return request


def _structure(rng: Random, request: Request) -> None:
    """Remove, double or retype a value of the body."""
    container, key = rng.choice(_places(request.body) or [({"": None}, "")])
    kind = rng.random()
    if kind < 0.3:
        del container[key]
    elif kind < 0.4 and isinstance(container, list):
        container.append(container[key])
    else:
        container[key] = deepcopy(rng.choice(JUNK))


def _parameter(rng: Random, request: Request) -> None:
    if isinstance(request.body, dict):
        name = rng.choice(list(PARAMETERS))
        request.body[name] = deepcopy(rng.choice(PARAMETERS[name]))


def _metok(rng: Random, request: Request) -> None:
    if isinstance(request.body, dict):
        names = rng.sample(list(METOK), rng.randrange(1, 4))
        request.body["metok"] = {name: deepcopy(rng.choice(METOK[name])) for name in names}


def _media(rng: Random, request: Request) -> None:
    """Change, cut off or insert bytes of a video or picture."""
    places = [(c, k) for c, k in _places(request.body) if _is_data_url(c[k])]
    if not places:
        return
    container, key = rng.choice(places)
    head, _, payload = container[key].partition(",")
    try:
        data = bytearray(base64.b64decode(payload.partition(",")[0]))
    except ValueError:  # an earlier mutation damaged the same place
        return
    _damage(rng, data)
    if rng.random() < 0.1:
        head = rng.choice(["data:video/mp4", "data:;base64", "data:video/jpeg;base64", "data:a/b"])
    container[key] = f"{head},{base64.b64encode(bytes(data)).decode()}"


def _long(rng: Random, request: Request) -> None:
    """Make a list or a text far longer than any client would."""
    if "long" in request.why[:-1]:
        return  # a list of long texts would take gigabytes
    container, key = rng.choice(_places(request.body) or [({"": None}, "")])
    items: list[Any] = [1, "a", None, {}, [], {"type": "text", "text": "a"}, {"role": "user"}]
    item = rng.choice(items)
    container[key] = [item] * MANY if rng.random() < 0.7 else "a" * (MANY * 10)


def _raw(rng: Random, request: Request) -> None:
    """Damage the JSON text, nest it deeply, or replace it by other bytes."""
    data = bytearray(_encoded(request))
    kind = rng.random()
    if kind < 0.6:
        _damage(rng, data)
    elif kind < 0.7:
        data = bytearray(b"[" * rng.choice([100, 5_000]))
    elif kind < 0.8:
        data = bytearray(b'{"a":' * 500 + b"1" + b"}" * 500)
    elif kind < 0.9:
        data = bytearray(rng.choice([b"", b"null", b"1", b'"a"', b"[]", b"NaN", b"\xff\xfe\x00"]))
    else:
        data = bytearray(b'{"model": ' + b"9" * 10_000 + b"}")
    request.raw = bytes(data)


def _content_type(rng: Random, request: Request) -> None:
    request.content_type = rng.choice(
        ["text/plain", "", "application/json; charset=utf-16", "multipart/form-data", "a" * 500]
    )


def _path(rng: Random, request: Request) -> None:
    request.path = rng.choice(
        [
            "/v1/chat/completions/batch",
            "/v1/completions",
            "/v1/responses",
            "/v1/messages",
            "/tokenize",
            "/detokenize",
            "/invocations",
            "/v1/chat/completions/",
            "//v1/chat/completions",
            "/v1/chat/completions/render",
            "/inference/v1/generate",
            "/generative_scoring",
            "/nowhere",
        ]
    )


MUTATIONS: tuple[Mutation, ...] = (
    _structure,
    _structure,
    _structure,
    _parameter,
    _parameter,
    _metok,
    _media,
    _media,
    _long,
    _raw,
    _content_type,
    _path,
)


def encoded(request: Request) -> bytes:
    """The bytes to send."""
    return request.raw if request.raw is not None else _encoded(request)


def _encoded(request: Request) -> bytes:
    return json.dumps(request.body).encode()


def _places(body: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    pending = [body]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else []
        keys = list(range(min(len(node), 50))) if isinstance(node, list) else keys
        for key in keys:
            found.append((node, key))
            pending.append(node[key])
    return found


def _is_data_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:") and "," in value


def _damage(rng: Random, data: bytearray) -> None:
    kind = rng.random()
    if kind < 0.3:
        del data[rng.randrange(len(data) + 1) :]
    elif kind < 0.8 and data:
        for _ in range(rng.choice([1, 10, 100])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    else:
        at = rng.randrange(len(data) + 1)
        data[at:at] = rng.randbytes(rng.choice([1, 1000]))
