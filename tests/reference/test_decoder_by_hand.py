"""The reference decoder on a model whose attention can be worked out on paper.

Every token has a whole number as its weight, and in every layer a query sees token j with
probability weight_j over the sum of all weights up to the query. Nothing else happens: values and
MLPs are zero, so hidden states stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.reference.decoder import Generated, LanguageModel, Prefill, Video, generate

WIDTH = 16
# The rotary frequency of this channel is 1e-10.5: positions turn it by nothing.
CHANNEL = 7
LAYERS, BOUNDARIES = 4, (1, 2, 3)
TEXT = 1

# Text, eight visual tokens in two events of four, the first of them a key event, two of text.
WEIGHTS = [TEXT, 4, 1, 3, 2, 8, 5, 6, 7, TEXT, TEXT]
VIDEO = Video(1, [0] * 4 + [1] * 4, [True, False], [0.9, 0.1], (8, 5, 2, 0))


@pytest.fixture(scope="module")
def counting() -> LanguageModel:
    """Token i has weight i + 1."""
    config = Qwen2Config(
        vocab_size=WIDTH,
        hidden_size=WIDTH,
        intermediate_size=4,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        num_key_value_heads=1,
        rms_norm_eps=1e-12,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model: Any = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.dim() == 1 else 0.0)
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.bias.zero_()
            # Queries of sqrt(16) undo the attention's scaling; the norm leaves rows of 4 alone.
            layer.self_attn.q_proj.bias[CHANNEL] = 4.0
            layer.self_attn.k_proj.weight[CHANNEL] = torch.arange(1, WIDTH + 1).log() / 4
        model.model.embed_tokens.weight.copy_(4 * torch.eye(WIDTH))
        model.lm_head.weight.copy_(torch.eye(WIDTH))
    return LanguageModel(model.model, model.lm_head)


def embedded(weights: Sequence[int]) -> Tensor:
    return 4 * torch.eye(WIDTH)[[weight - 1 for weight in weights]]


def answered(
    counting: LanguageModel, stages: tuple[int, ...], decode_keep: float = 0.0
) -> Generated:
    return generate(counting, embedded(WEIGHTS), [VIDEO], BOUNDARIES, 2, stages, decode_keep)


def test_scores_are_the_mean_over_the_question_of_the_whole_causal_row(
    counting: LanguageModel,
) -> None:
    result = answered(counting, (2,))
    # Up to the two rows of text after the video the weights add up to 38 and 39; in the next
    # layer, where 4, 3, 2, 8 and 7 are left, to 26 and 27.
    first = [weight * (1 / 38 + 1 / 39) / 2 for weight in (4, 1, 3, 2, 8, 5, 6, 7)]
    second = [weight * (1 / 26 + 1 / 27) / 2 for weight in (4, 3, 2, 8, 7)]
    assert result.scores[0][0] == pytest.approx(first, abs=1e-6)
    assert result.scores[1][0] == pytest.approx(second, abs=1e-6)
    # The closest decisions are 2 against 1 and 7 against 6, both at the first pruning layer.
    assert result.margin == pytest.approx((1 / 38 + 1 / 39) / 2, abs=1e-6)


def test_stage_2_selects_inside_each_event(counting: LanguageModel) -> None:
    result = answered(counting, (2,))
    # p0: quotas 5 * 4/6 and 5 * 2/6 give 3 and 2 tokens: 4, 3, 2 and 8, 7.
    # p1: two tokens, all from the key event, although 8 and 7 score higher: 4, 3.
    everything = [1, 2, 3, 4, 5, 6, 7, 8]
    assert result.kept == [[everything], [[1, 3, 4, 5, 8]], [[1, 3]], [[]]]
    assert result.held == [
        list(range(11)),
        [0, 1, 3, 4, 5, 8, 9, 10],
        [0, 1, 3, 9, 10],
        [0, 9, 10],
    ]


@pytest.mark.parametrize(
    ("stages", "decode_keep", "expected"),
    [
        ((2, 3), 0.0, [[], [], []]),
        # ceil(0.5 * 5) = 3 of 4, 3, 2, 8, 7 by their score at p0, ceil(0.5 * 2) = 1 of 4, 3 at p1.
        ((2, 3), 0.5, [[1, 5, 8], [1], []]),
        ((2, 3), 1.0, [[1, 3, 4, 5, 8], [1, 3], []]),
        ((3,), 0.0, [[], [], []]),
        # ceil(0.5 * 8) = 4 of the whole video, whatever the event: 8, 7, 6, 5.
        ((3,), 0.5, [[5, 6, 7, 8], [5, 6, 7, 8], []]),
        ((3,), 1.0, [list(range(1, 9)), list(range(1, 9)), []]),
    ],
)
def test_stage_3_keeps_the_text_and_the_best_scored_share(
    counting: LanguageModel, stages: tuple[int, ...], decode_keep: float, expected: list[list[int]]
) -> None:
    result = answered(counting, stages, decode_keep)
    assert result.held[0] == list(range(11))
    assert result.held[1:] == [[0, *visual, 9, 10] for visual in expected]
    if 2 not in stages:
        assert result.kept == [[list(range(1, 9))]] * 4


def test_the_cache_holds_the_keys_of_the_positions_it_names(counting: LanguageModel) -> None:
    prefill = Prefill(counting, embedded(WEIGHTS), [VIDEO], BOUNDARIES)
    with torch.no_grad():
        prefill.run(prune=True)
        prefill.compress(0.5)
    for layer, positions in enumerate(prefill.held):
        keys = prefill.cache.layers[layer].keys[0, 0, :, CHANNEL].exp()
        assert keys.tolist() == pytest.approx([WEIGHTS[position] for position in positions])


def test_a_prompt_that_ends_with_its_video_keeps_the_last_token(counting: LanguageModel) -> None:
    weights = [TEXT, 4, 1, 3, 2]
    video = Video(1, [0] * 4, [True], [0.5], (3, 2, 1, 0))
    result = generate(counting, embedded(weights), [video], BOUNDARIES, 1)
    # The last token asks, and its row sums to 11.
    assert result.scores[0][0] == pytest.approx([4 / 11, 1 / 11, 3 / 11], abs=1e-6)
    assert result.kept == [[[1, 2, 3]], [[1, 3]], [[1]], [[]]]
    assert result.held == [[0, 1, 2, 3, 4], [0, 4], [0, 4], [0, 4]]
    # Nothing is added to a hidden state here, so the token repeats itself.
    assert result.tokens == [weights[-1] - 1]


def test_two_videos_are_selected_each_by_itself(counting: LanguageModel) -> None:
    weights = [1, 2, 3, TEXT, 9, 7, 8, TEXT]
    first = Video(0, [0] * 3, [True], [0.5], (3, 2, 1, 0))
    second = Video(4, [0, 1, 1], [False, True], [0.1, 0.5], (3, 2, 1, 0))
    result = generate(counting, embedded(weights), [first, second], BOUNDARIES, 1, (2,))
    # Only the row after the last video scores: it sums to 32, later to 22 (2, 3 and 7, 8 stay).
    # Quotas of the second video are 2 * 0.5/2.5 and 2 * 2/2.5: 0 and 2.
    assert result.scores[0][0] == pytest.approx([1 / 32, 2 / 32, 3 / 32], abs=1e-6)
    assert result.scores[1][1] == pytest.approx([7 / 22, 8 / 22], abs=1e-6)
    assert result.kept[1] == [[1, 2], [5, 6]]
    assert result.kept[2] == [[2], [6]]
    assert result.held[3] == [3, 7]


def test_tokens_without_a_video_are_all_text(counting: LanguageModel) -> None:
    result = generate(counting, embedded([TEXT, 3, 2]), [], BOUNDARIES, 2)
    assert result.held == [[0, 1, 2]] * LAYERS
    assert result.margin == math.inf
    assert result.scores == [[], []]


@pytest.mark.parametrize("boundaries", [(0, 1, 2), (1, 1, 2), (2, 1, 3), (1, 2, 4)])
def test_pruning_layers_that_are_none_are_refused(
    counting: LanguageModel, boundaries: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match="pruning layers"):
        generate(counting, embedded(WEIGHTS), [VIDEO], boundaries, 1)


def test_a_plan_for_another_number_of_tokens_is_refused(counting: LanguageModel) -> None:
    # The prompt ends with the video, so seven tokens may be dropped and not eight.
    with pytest.raises(ValueError, match="planned 8"):
        generate(counting, embedded(WEIGHTS[:9]), [VIDEO], BOUNDARIES, 1)
