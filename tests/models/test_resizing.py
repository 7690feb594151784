"""`reduce: resize`: pixels in Qwen's order, rows by class, and what the tower gets to see.

Shape suffixes: T frames, N patches of a frame or tokens, V values of a patch, D features, C
channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import Qwen2VLVideoProcessor

from metok_vllm.alignment import Normalisation
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import RESIZE
from metok_vllm.kernels.adaptive_pool import pack_index
from metok_vllm.models.qwen_pixels import PatchOrder
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.resizing import frames_by_class, rows_by_class
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.plan.layout import AREA, VideoLayout
from tests.reference import stage1
from tests.reference.qwen_resize import Pixels, thumbnails
from tests.reference.strategies import bounded

PATCH, GRID, FRAMES, WIDTH = 4, (4, 6), 13, 6
GRIDS = (GRID, (2, 3), (1, 2))  # of the three classes
ORDER = PatchOrder(PATCH, merge=2, sampled=2)
BYTES = Normalisation((0.0,) * 3, (1 / 255,) * 3, 2 * PATCH)
NORMALISED = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 2 * PATCH)
CONFIG = METokConfig(num_events=4, key_frames_per_event=1, reduce=RESIZE, encoder_chunk_frames=6)
TEXT = ((1, 2), (3, 1))


def video(frames: int = FRAMES, **fields: Any) -> VideoLayout:
    return VideoLayout(frames, *GRID, unit=2, pooling=AREA, sampled_frames=2, **fields)


def clip(scenes: tuple[int, ...], noise: float = 0.1) -> Tensor:
    """Pixels [T, N, V] of random scenes of these lengths, with noise in every sampled frame."""
    generator = torch.Generator().manual_seed(5)
    size = (3, GRID[0] * 2 * PATCH, GRID[1] * 2 * PATCH)
    pictures = torch.stack(
        [
            (scene + noise * torch.randn(2, *size, generator=generator)).clamp(0, 1)
            for scene, length in zip(
                torch.rand(len(scenes), *size, generator=generator), scenes, strict=True
            )
            for _ in range(length)
        ]
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (NORMALISED.mean, NORMALISED.std))
    return ORDER.patches((pictures - mean) / std)


class Model:
    """A stand-in for a Qwen model, which notes the grids and frames that its tower sees."""

    def __init__(self, towers: Any = None, cache_bytes: int = 0) -> None:
        self.seen: list[tuple[int, int, int]] = []
        weight_VD = torch.randn(3 * 2 * PATCH**2, WIDTH, generator=torch.Generator().manual_seed(1))
        self.weight_VD = weight_VD
        self.stage1 = Stage1Encoder(
            replace(CONFIG, feature_cache_bytes=cache_bytes),
            self.see,
            lambda x: x,
            NORMALISED,
            towers,
            picture=lambda pixels, video: ORDER.pictures(pixels, video.grid)[:, 0],
            resize=lambda pixels, video, target: ORDER.resized(
                pixels, video.grid, target.grid, NORMALISED
            ),
        )

    def see(self, pixels_TNV: Tensor, video: VideoLayout) -> Tensor:
        self.seen.append((len(pixels_TNV), *video.grid))
        assert pixels_TNV.shape[1] == 4 * video.rows * video.columns
        weight_VD = self.weight_VD.to(pixels_TNV.device)
        features_TPD: Tensor = (pixels_TNV @ weight_VD).unflatten(1, (-1, 4)).mean(2)
        return features_TPD

    def encode(
        self, pixels: Tensor, config: METokConfig = CONFIG, query: Any = (), **fields: Any
    ) -> Tensor:
        request = EncodeRequest("key", config, query, "content")
        return self.stage1.encode(pixels, None, request, video(len(pixels)), **fields)

    def report(self) -> dict[str, Any]:
        found = self.stage1.events.report("key")
        assert found is not None
        return found


def test_the_order_of_patches_is_the_published_processor_s() -> None:
    picture_TCHW = torch.randn(6, 3, 2 * PATCH * GRID[0], 2 * PATCH * GRID[1])
    found, *_ = Qwen2VLVideoProcessor().patchify(picture_TCHW[None], PATCH, 2, 2)
    pixels_TNV = found.view(3, -1, found.shape[-1])
    picture_TSCHW = picture_TCHW.unflatten(0, (3, 2))
    torch.testing.assert_close(ORDER.patches(picture_TSCHW), pixels_TNV, rtol=0, atol=0)
    torch.testing.assert_close(ORDER.pictures(pixels_TNV, GRID), picture_TSCHW, rtol=0, atol=0)


def test_bytes_are_resized_as_the_published_processor_resizes() -> None:
    """One level apart at most: between rows and columns it rounds to bytes."""
    generator = torch.Generator().manual_seed(3)
    scene_TCHW = torch.randint(50, 205, (4, 3, 64, 96), generator=generator).byte()
    processor = Qwen2VLVideoProcessor(do_rescale=False, do_normalize=False, patch_size=PATCH)
    area = {"shortest_edge": 32 * 48, "longest_edge": 32 * 48}
    published = processor([scene_TCHW], size=area, do_sample_frames=False, return_tensors="pt")
    assert published["video_grid_thw"].tolist() == [[2, 8, 12]]
    pixels = ORDER.patches(scene_TCHW.unflatten(0, (2, 2)))
    found = ORDER.resized(pixels, (8, 12), (4, 6), BYTES)
    assert found.dtype == torch.uint8
    expected = published["pixel_values_videos"].view(*found.shape)
    error = found.float() - expected.float()
    assert error.abs().max() <= 1
    assert error.mean().abs() < 0.1  # rounded, not cut off
    assert expected.float().std() > 10


def test_normalised_values_stay_in_the_range_of_pixels() -> None:
    pixels = clip((2,), noise=5.0)
    found = ORDER.resized(pixels, GRID, (2, 3), NORMALISED)
    reference = Pixels(PATCH, NORMALISED.mean, NORMALISED.std)
    expected = torch.stack([reference.resized(frame, GRID, (2, 3)) for frame in pixels])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    colours = reference.colours(ORDER.pictures(found, (2, 3)))
    assert -1e-6 < colours.min() < 1e-6
    assert 1 - 1e-6 < colours.max() < 1 + 1e-6


@bounded
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=9),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.integers(0, 2),
)
def test_every_row_moves_to_its_frame_s_place_within_its_class(
    classes: list[int], sizes: list[int], around: int
) -> None:
    counts = [classes.count(number) for number in range(3)]
    everywhere: list[Any] = [
        (number, frame, k)
        for number, size in enumerate(sizes)
        for frame in range(len(classes))
        for k in range(size)
    ]
    held: list[Any] = [row for row in sorted(everywhere) if classes[row[1]] == row[0]]
    others = [f"text {index}" for index in range(2 * around * len(classes))]
    everywhere, held = everywhere + others, held + others
    class_T = torch.tensor(classes)
    head_T = torch.full_like(class_T, around)
    tokens = sum(sizes[number] for number in classes) + len(others)
    row_N, _ = pack_index(
        class_T,
        class_T,
        [(1, size) for size in sizes],
        tokens,
        closes_events=False,
        head_T=head_T,
        tail_T=head_T,
    )
    found_N = rows_by_class(row_N, class_T, counts, sizes, len(held))
    assert [held[row] for row in found_N.tolist()] == [everywhere[row] for row in row_N.tolist()]
    frames = [frame_F.tolist() for frame_F in frames_by_class(class_T, counts)]
    assert frames == [[t for t, c in enumerate(classes) if c == number] for number in range(3)]


def test_each_frame_is_seen_once_at_the_resolution_of_its_class() -> None:
    """In chunks of as many patches as three whole frames have, or fewer."""
    model, lengths = Model(), (12, 8, 10, 18)
    tokens_ND = model.encode(clip(lengths))
    layout = video(sum(lengths))
    fine, medium, coarse = layout.budget(CONFIG).counts
    assert len(tokens_ND) == layout.tokens(CONFIG) == 24 * fine + 6 * medium + 2 * coarse
    seen = {grid: [n for n, *of in model.seen if tuple(of) == grid] for grid in GRIDS}
    assert [sum(counts) for counts in seen.values()] == [fine, medium, coarse]
    assert [max(counts) for counts in seen.values()] == [3, 12, coarse]
    assert coarse < 36


def test_scenes_are_events_without_alignment_towers() -> None:
    model = Model()
    pixels = clip((4, 2, 4, 3))
    model.encode(pixels)
    report = model.report()
    assert report["event_of_frame"] == [0] * 4 + [1] * 2 + [2] * 4 + [3] * 3
    looks = thumbnails(list(pixels), GRID, Pixels(PATCH, NORMALISED.mean, NORMALISED.std))
    relevance = stage1.fallback_relevance(looks, report["event_of_frame"])
    assert report["relevance_of_frame"] == pytest.approx(relevance, abs=1e-4)


def test_frames_of_a_still_video_tie() -> None:
    """The last bits of a mean must not place its events."""
    model = Model()
    model.encode(clip((1,)).expand(FRAMES, -1, -1).contiguous())
    report = model.report()
    assert report["event_of_frame"] == [0, 1, 2] + [3] * (FRAMES - 3)
    assert set(report["relevance_of_frame"]) == {1.0}


@pytest.mark.parametrize("query", [TEXT, ()])
def test_alignment_towers_see_whole_frames_first(query: Any) -> None:
    """Events come from their embeddings, with or without a question that ranks frames."""

    def embed(pixels_TCHW: Tensor) -> Tensor:
        return pixels_TCHW.flatten(2)[:, :, :2].flatten(1)

    towers = SimpleNamespace(
        normalisation=NORMALISED,
        device=torch.device("cpu"),
        embed_frames=embed,
        embed_text=lambda ids_WL: torch.cat([ids_WL.float().amax(0), ids_WL.float().amin(0)] * 2)[
            :6
        ],
    )
    model, pixels = Model(towers), clip((4, 2, 4, 3))
    model.stage1.video.pixels = towers.normalisation = replace(NORMALISED, size=-1)
    model.encode(pixels, query=query)
    report = model.report()
    embedded = embed(ORDER.pictures(pixels, GRID)[:, 0]).tolist()
    event_of = stage1.event_of_frames(stage1.adjacent_cosines(embedded), 4)
    assert report["event_of_frame"] == event_of
    relevance = stage1.fallback_relevance(embedded, event_of)
    if query:
        text = towers.embed_text(torch.tensor(query)).tolist()
        relevance = [stage1.cosine(frame, text) for frame in embedded]
    assert report["relevance_of_frame"] == pytest.approx(relevance, abs=2e-6)


def test_whole_frames_alone_are_the_dense_video() -> None:
    model, pixels = Model(), clip((4, 2, 4, 3))
    whole = replace(CONFIG, key_event_ratio=1.0, key_frames_per_event=1.0)
    dense_ND = model.see(pixels, video()).flatten(0, 1)
    for config in (
        whole,
        replace(CONFIG, strides=(2, 2, 2)),
        replace(CONFIG, stages=(2, 3)),  # nothing is reduced without stage 1
    ):
        found_ND = model.encode(pixels, config)
        torch.testing.assert_close(found_ND, dense_ND, atol=1e-5, rtol=1e-5)


def test_the_feature_cache_stays_empty() -> None:
    """What the tower saw depends on the question; another one must not get it."""
    model, pixels = Model(cache_bytes=1 << 20), clip((4, 2, 4, 3))
    model.encode(pixels)
    before = len(model.seen)
    model.encode(pixels)
    assert len(model.seen) == 2 * before
    assert model.report()["cached"] is None
    assert not model.stage1.video.cache.entries


def test_nothing_waits_for_the_device() -> None:
    """Tensors without values: reading one, or a shape that depends on one, raises."""
    around = tuple((1, 2) for _ in range(FRAMES)), tuple((3,) for _ in range(FRAMES))
    layout = video(before=around[0], after=around[1])
    pixels = clip((4, 2, 4, 3)).to("meta")
    request = EncodeRequest("key", CONFIG, ())
    text_SD = torch.empty(layout.separators, WIDTH, device="meta")
    tokens_ND = Model().stage1.encode(pixels, None, request, layout, text_SD)
    assert tokens_ND.shape == (layout.tokens(CONFIG), WIDTH)
