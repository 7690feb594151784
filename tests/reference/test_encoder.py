"""The encoder's pieces, batched and chunked, against one frame and one window at a time."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.alignment import AlignmentTowers, Normalisation, encode_query, renormalise
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import POOL, SELECT
from metok_vllm.errors import ConfigError
from metok_vllm.models.request import EncodeRequest, pack, selection_payload, unpack
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.plan.layout import VideoLayout
from tests.layouts import square
from tests.reference import checkpoints, features, stage1
from tests.reference.strategies import bounded

PIXELS = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 30)
QUERY = "where is the red ball when does it fall and then who opened the door"
FAMILIES = ("siglip", "clip")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    checkpoints.save_video_model(root / "video")
    checkpoints.save_siglip(root / "siglip")
    checkpoints.save_clip(root / "clip")
    return root


@pytest.fixture(scope="module")
def towers(root: Path) -> dict[str, AlignmentTowers]:
    return {name: AlignmentTowers.load(str(root / name)) for name in FAMILIES}


@pytest.fixture(scope="module")
def tokenizers(root: Path) -> dict[str, Any]:
    return {name: features.load_tokenizer(root / name) for name in FAMILIES}


@pytest.fixture(scope="module")
def video_model(root: Path) -> Any:
    return features.load_video_model(root / "video", torch.float32)


def random_pixels(frames: int, seed: int = 3) -> torch.Tensor:
    """Smooth scenes of a few frames each, as the video processor would normalise them."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.rand(frames // 3 + 1, 3, 30, 30, generator=generator)
    noise = torch.rand(frames, 3, 30, 30, generator=generator)
    picture = 0.7 * scene[torch.arange(frames) // 3] + 0.3 * noise
    mean, std = torch.tensor(PIXELS.mean), torch.tensor(PIXELS.std)
    return (picture - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@bounded
@given(st.lists(st.sampled_from([*QUERY.split(), "unheard"]), min_size=1, max_size=40))
@pytest.mark.parametrize("family", FAMILIES)
def test_query_windows_equal_the_reference(
    tokenizers: dict[str, Any], family: str, words: list[str]
) -> None:
    tokenizer, query = tokenizers[family], " ".join(words)
    expected = features.query_windows(tokenizer, query, 8)
    assert encode_query(tokenizer, query, max_windows=99).tolist() == expected
    assert encode_query(tokenizer, query, max_windows=2).tolist() == expected[:2]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("query", ["ball", QUERY])
def test_text_embedding_equals_the_reference(
    root: Path,
    towers: dict[str, AlignmentTowers],
    tokenizers: dict[str, Any],
    family: str,
    query: str,
) -> None:
    embedding = towers[family].embed_text(encode_query(tokenizers[family], query))
    own = features.load_alignment(root / family, torch.float32)
    expected = features.text_embedding(own, root / family, query)
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_image_embeddings_equal_the_reference(
    root: Path, towers: dict[str, AlignmentTowers], family: str
) -> None:
    pixels_TCHW = random_pixels(5)
    tower = towers[family]
    embedded = tower.embed_frames(renormalise(pixels_TCHW, PIXELS, tower.normalisation))
    own = features.load_alignment(root / family, torch.float32)
    for frame, embedding in zip(pixels_TCHW, embedded, strict=True):
        pixels = features.alignment_pixels(frame, root / "video", root / family, own)
        expected = features.pooled(own.get_image_features(pixel_values=pixels[None]))
        torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_shared_embeddings_equal_the_reference(
    root: Path, towers: dict[str, AlignmentTowers], video_model: Any
) -> None:
    own = features.load_alignment(root / "siglip", torch.float32)
    seen = [features.vision_features(video_model, frame) for frame in random_pixels(5)]
    embedded = towers["siglip"].embed_features(torch.stack(seen))
    for feature, embedding in zip(seen, embedded, strict=True):
        expected = features.shared_embedding(own, feature)
        torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)


def test_relevance_is_the_cosine() -> None:
    image_TD = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    image_TD[3] = 0.0
    text_D = torch.tensor([1.0, -2.0, 0.5, 3.0])
    expected = [stage1.cosine(row, text_D.tolist()) for row in image_TD.tolist()]
    relevance = AlignmentTowers.relevance(image_TD, text_D)
    torch.testing.assert_close(relevance, torch.tensor(expected), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("reduce", [POOL, SELECT])
@pytest.mark.parametrize(
    ("frames", "chunk", "per_event"), [(1, 1, 2), (2, 1, 0.5), (5, 4, 2), (7, 32, 0.5), (32, 5, 2)]
)
@pytest.mark.parametrize(
    ("family", "mode"),
    [("siglip", "separate"), ("siglip", "shared"), ("clip", "separate"), (None, "none")],
)
def test_encoded_video_equals_the_reference(
    root: Path,
    towers: dict[str, AlignmentTowers],
    tokenizers: dict[str, Any],
    video_model: Any,
    family: str | None,
    mode: str,
    frames: int,
    chunk: int,
    per_event: int | float,
    reduce: str,
) -> None:
    def see(pixels_TCHW: torch.Tensor, _: VideoLayout) -> torch.Tensor:
        seen = video_model.model.vision_tower(pixels_TCHW, output_hidden_states=True)
        hidden: torch.Tensor = seen.hidden_states[-1]
        return hidden

    config = METokConfig(
        num_events=4,
        key_frames_per_event=per_event,
        alignment_mode=mode,
        encoder_chunk_frames=chunk,
        reduce=reduce,
    )
    query_ids = torch.empty(0, 8, dtype=torch.int64)
    if family is not None:
        query_ids = encode_query(tokenizers[family], QUERY)
    field = pack("a-video", selection_payload(config, query_ids))
    (request,) = unpack([field], config)
    assert isinstance(request, EncodeRequest)
    encoder = Stage1Encoder(
        config,
        see,
        video_model.model.multi_modal_projector,
        PIXELS,
        None if family is None else towers[family],
    )
    pixels_TCHW = random_pixels(frames)
    video = square(frames, 5)
    tokens = encoder.encode(pixels_TCHW, video_model.model.image_newline, request, video)
    expected = features.stage1_from_checkpoint(
        root / "video", root / family if family else None, mode, pixels_TCHW, QUERY, config
    )
    decided = encoder.events.report("a-video")
    assert decided is not None
    assert decided["event_of_frame"] == expected.event_T
    assert decided["class_of_frame"] == expected.class_T
    key = [event in expected.key_events for event in range(len(expected.event_relevance))]
    assert decided["event_key"] == key
    torch.testing.assert_close(
        torch.tensor(decided["relevance_of_frame"]),
        torch.tensor(expected.relevance_T),
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(tokens, expected.tokens_ND, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_shared_runs_the_layers_that_the_video_model_left_out(root: Path, layer: int) -> None:
    """Features taken before the last layers give the image tower's own embedding all the same."""
    whole, shared = (AlignmentTowers.load(str(root / "siglip")) for _ in range(2))
    pixels_TCHW = random_pixels(4)
    own = whole.model.config.vision_config
    with torch.no_grad():
        states = whole.model.vision_model(pixels_TCHW, output_hidden_states=True).hidden_states
    video_config = SimpleNamespace(
        vision_config=own, vision_feature_layer=layer, vision_feature_select_strategy="full"
    )
    shared.share_vision(video_config)
    embedded_TD = shared.embed_features(states[layer])
    assert torch.allclose(embedded_TD, whole.embed_frames(pixels_TCHW), atol=1e-5)
    weights = sum(p.numel() for p in shared.model.vision_model.parameters())
    assert weights < sum(p.numel() for p in whole.model.vision_model.parameters())


@pytest.mark.parametrize("layer", [-1, -2])
def test_clip_is_shared_by_its_class_token(root: Path, layer: int) -> None:
    """A video model with CLIP's tower drops the class token from its own tokens, not from here."""
    whole, shared = (AlignmentTowers.load(str(root / "clip")) for _ in range(2))
    own = whole.model.config.vision_config
    pixels_TCHW = torch.randn(4, 3, own.image_size, own.image_size)
    with torch.no_grad():
        states = whole.model.vision_model(pixels_TCHW, output_hidden_states=True).hidden_states
    video_config = SimpleNamespace(
        vision_config=own, vision_feature_layer=layer, vision_feature_select_strategy="default"
    )
    shared.share_vision(video_config, class_token=True)
    embedded_TD = shared.embed_features(states[layer])
    assert torch.allclose(embedded_TD, whole.embed_frames(pixels_TCHW), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("siglip", {"hidden_size": 7}),
        ("siglip", {"num_hidden_layers": 99}),
        ("siglip", {"model_type": "clip_vision_model"}),
        ("siglip", {"vision_feature_layer": [0, 1]}),
        ("siglip", {"vision_feature_select_strategy": "default"}),
        ("clip", {}),
    ],
)
def test_shared_is_refused_where_it_does_not_fit(
    root: Path, family: str, changes: dict[str, Any]
) -> None:
    towers = AlignmentTowers.load(str(root / family))
    own = towers.model.config.vision_config
    names = ("model_type", "hidden_size", "num_hidden_layers")
    vision = {name: changes.get(name, getattr(own, name)) for name in names}
    video_config = SimpleNamespace(
        vision_config=SimpleNamespace(**vision),
        vision_feature_layer=changes.get("vision_feature_layer", -1),
        vision_feature_select_strategy=changes.get("vision_feature_select_strategy", "full"),
    )
    with pytest.raises(ConfigError, match="Use 'separate'"):
        towers.share_vision(video_config)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_contract(
    root: Path, video_model: Any, tokenizers: dict[str, Any], dtype: torch.dtype
) -> None:
    """Counts and dtype hold in the dtypes that GPUs serve, and what is decided is finite."""
    half = copy.deepcopy(video_model.model).to(dtype)
    config = METokConfig(num_events=3, key_frames_per_event=2)
    encoder = Stage1Encoder(
        config,
        lambda pixels, _: half.vision_tower(pixels).last_hidden_state,
        half.multi_modal_projector,
        PIXELS,
        AlignmentTowers.load(str(root / "siglip"), dtype=dtype),
    )
    payload = selection_payload(config, encode_query(tokenizers["siglip"], QUERY))
    (request,) = unpack([pack("a-video", payload)], config)
    assert request is not None
    tokens_ND = encoder.encode(
        random_pixels(13).to(dtype), half.image_newline, request, square(13, 5)
    )
    assert tokens_ND.dtype == dtype
    assert len(tokens_ND) == square(13, 5).encoded_tokens(config)
    decided = encoder.events.report("a-video")
    assert decided is not None
    assert all(map(math.isfinite, decided["relevance_of_frame"]))
    assert torch.isfinite(tokens_ND).all()


def test_what_is_asked_about_is_forgotten_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metok_vllm.models.event_store.MIN_CAPACITY", 2)
    encoder = Stage1Encoder(
        METokConfig(), lambda x, _: x.flatten(2).mT, lambda x: x, PIXELS, None, 2
    )

    def encode(key: str) -> None:
        request = EncodeRequest(key, METokConfig(), ())
        encoder.encode(torch.randn(4, 3, 5, 5), torch.zeros(3), request, square(4, 5))

    encode("a")
    encode("b")
    first = encoder.events.report("a")
    assert first is not None
    assert first["seconds"] > 0
    encode("c")
    again = encoder.events.report("a")
    assert again is not None
    assert again["seconds"] is None
    assert encoder.events.report("b") is None
