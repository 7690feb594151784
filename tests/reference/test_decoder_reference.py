"""The reference decoder against Hugging Face, and against the same rules as attention masks."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import decoder, pruning
from tests.reference.decoder import Generated, LanguageModel, generate
from tests.reference.mrope import Positions
from tests.reference.prompts import LAYOUTS, Prompt, prompt_of
from tests.reference.staged_checkpoint import language_model

BOUNDARIES, NEW_TOKENS = (2, 4, 6), 6
# Float32 through eight layers, summed in another order; what must show is a hundred times more.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(staged_model: Any) -> LanguageModel:
    return language_model(staged_model)


@pytest.fixture(scope="module")
def prompt(model: LanguageModel) -> Prompt:
    return prompt_of(model, LAYOUTS["one video"])


def run(model: LanguageModel, prompt: Prompt, stages: tuple[int, ...], **more: Any) -> Generated:
    options: dict[str, Any] = {"boundaries": BOUNDARIES, "new_tokens": NEW_TOKENS, **more}
    return generate(model, prompt.embeds_ND, prompt.videos, stages=stages, **options)


@torch.no_grad()
def by_masks(
    model: LanguageModel, prompt: Prompt, result: Generated, boundaries: tuple[int, int, int]
) -> Tensor:
    """Log-probabilities [S, V] of `result`'s tokens in one pass that drops and caches nothing.

    Every token stays in every layer; masks hide what a layer must not see.
    """
    length = len(prompt.embeds_ND)
    ids = torch.tensor(result.tokens[:-1], dtype=torch.long)
    hidden_1ND = torch.cat([prompt.embeds_ND, model.decoder.embed_tokens(ids)])[None]
    total = hidden_1ND.shape[1]
    rotary = model.decoder.rotary_emb(hidden_1ND, torch.arange(total)[None])
    droppable = {position for video in result.kept[0] for position in video}
    for number, layer in enumerate(model.decoder.layers):
        stage = sum(number >= boundary for boundary in boundaries)
        ran_on = {position for video in result.kept[stage] for position in video}
        mask_NN = torch.full((total, total), -torch.inf)
        for query in range(total):
            for key in range(query + 1):
                if query < length:
                    seen = key not in droppable or key in ran_on
                else:
                    seen = key >= length or key in result.held[number]
                # A token that is not there any more needs something to look at.
                if seen or key == query:
                    mask_NN[query, key] = 0.0
        hidden_1ND = layer(
            hidden_1ND, attention_mask=mask_NN[None, None], position_embeddings=rotary
        )
    logits_SV = model.lm_head(model.decoder.norm(hidden_1ND[0, length - 1 :]))
    logprobs: Tensor = torch.log_softmax(logits_SV, dim=-1)
    return logprobs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_stages_it_is_hugging_faces_own_generation(staged_model: Any, layout: str) -> None:
    model = language_model(staged_model)
    prompt = prompt_of(model, LAYOUTS[layout])
    expected = staged_model.generate(
        inputs_embeds=prompt.embeds_ND[None],
        attention_mask=torch.ones(1, len(prompt.embeds_ND), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=-1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    result = run(model, prompt, ())
    assert result.tokens == expected.sequences[0].tolist()
    expected_SV = torch.log_softmax(torch.cat(expected.logits), dim=-1)
    torch.testing.assert_close(result.logprobs_SV, expected_SV, atol=TOLERANCE, rtol=0)
    assert result.held == [list(range(len(prompt.embeds_ND)))] * 8


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stages", [(2,), (3,), (2, 3)])
@pytest.mark.parametrize("decode_keep", [0.0, 0.3])
def test_dropping_is_the_same_as_not_being_seen(
    model: LanguageModel, layout: str, stages: tuple[int, ...], decode_keep: float
) -> None:
    prompt = prompt_of(model, LAYOUTS[layout])
    for boundaries in (BOUNDARIES, (1, 2, 3), (3, 5, 7)):
        result = run(model, prompt, stages, boundaries=boundaries, decode_keep=decode_keep)
        expected_SV = by_masks(model, prompt, result, boundaries)
        torch.testing.assert_close(result.logprobs_SV, expected_SV, atol=TOLERANCE, rtol=0)
        assert result.margin > 1e-7


@pytest.mark.parametrize("layout", ["two videos", "no text after"])
@pytest.mark.parametrize("stages", [(3,), (2, 3)])
def test_separators_are_held_in_every_layer(
    model: LanguageModel, layout: str, stages: tuple[int, ...]
) -> None:
    prompt = prompt_of(model, LAYOUTS[layout], separated=True)
    result = run(model, prompt, stages, decode_keep=0.3)
    expected_SV = by_masks(model, prompt, result, BOUNDARIES)
    torch.testing.assert_close(result.logprobs_SV, expected_SV, atol=TOLERANCE, rtol=0)
    text = set(range(len(prompt.embeds_ND)))
    for number, video in enumerate(prompt.videos):
        text -= {video.start + token for token in range(len(video.event_of))} - {
            video.start + token for token in video.separators
        }
        if 2 in stages:
            assert [len(kept[number]) for kept in result.kept] == list(video.totals)
    assert len(text) > 10
    assert all(text <= set(positions) for positions in result.held)
    last = len(prompt.embeds_ND) - 1
    assert set(result.held[-1]) == text | {last}


def test_kept_tokens_nest_and_have_the_planned_numbers(model: LanguageModel) -> None:
    prompt = prompt_of(model, LAYOUTS["two videos"])
    result = run(model, prompt, (2, 3), decode_keep=0.4)
    for number, video in enumerate(prompt.videos):
        stages = [kept[number] for kept in result.kept]
        assert [len(positions) for positions in stages] == list(video.totals)
        assert all(set(later) < set(earlier) for earlier, later in pairwise(stages))
    text = len(prompt.embeds_ND) - sum(video.totals[0] for video in prompt.videos)
    for layer, stage in ((2, 1), (3, 1), (4, 2), (5, 2)):
        # ceil(0.4 * M), in whole numbers.
        shares = [-(-4 * video.totals[stage] // 10) for video in prompt.videos]
        assert len(result.held[layer]) == text + sum(shares)
    assert [len(result.held[layer]) for layer in (6, 7)] == [text, text]


@torch.no_grad()
def test_scores_are_the_attention_of_the_layer_before(model: LanguageModel) -> None:
    prompt = prompt_of(model, LAYOUTS["two videos"])
    result = run(model, prompt, (3,))
    attentions = model.decoder(
        inputs_embeds=prompt.embeds_ND[None], output_attentions=True
    ).attentions
    for entry in (0, 1):
        mean_N = attentions[BOUNDARIES[entry] - 1][0, :, prompt.videos[-1].end :].mean(dim=(0, 1))
        for video, scores in zip(prompt.videos, result.scores[entry], strict=True):
            assert scores == pytest.approx(mean_N[video.start : video.end].tolist(), abs=1e-6)


@pytest.mark.parametrize("stages", [(3,), (2, 3)])
def test_decoding_keeps_by_the_scores_of_the_layers_own_entry(
    model: LanguageModel, prompt: Prompt, stages: tuple[int, ...]
) -> None:
    result = run(model, prompt, stages, decode_keep=0.4)
    visual = set(result.kept[0][0])
    for layer, entry in ((2, 0), (3, 0), (4, 1), (5, 1)):
        ran_on = result.kept[entry + 1][0]
        held = visual.intersection(result.held[layer])
        best_by = []
        for scored, scores in zip(result.kept, result.scores, strict=False):
            score_of = dict(zip(scored[0], scores[0], strict=True))
            ranked = sorted(ran_on, key=lambda position: score_of[position])
            best_by.append(set(ranked[-len(held) :]))
        assert held == best_by[entry]
        # The two entries disagree, so that taking the scores of the other one would show.
        assert held != best_by[1 - entry]


def distance(a: Generated, b: Generated) -> float:
    """Largest difference of the first two rows' log-probabilities, where the inputs agree."""
    assert a.tokens[0] == b.tokens[0]
    return float((a.logprobs_SV[:2] - b.logprobs_SV[:2]).abs().max())


def test_each_stage_and_setting_shows_in_the_answer(model: LanguageModel, prompt: Prompt) -> None:
    results = [
        run(model, prompt, (), new_tokens=2),
        run(model, prompt, (2,), new_tokens=2),
        run(model, prompt, (3,), new_tokens=2),
        run(model, prompt, (2, 3), new_tokens=2),
        run(model, prompt, (2, 3), new_tokens=2, decode_keep=0.5),
        run(model, prompt, (2, 3), new_tokens=2, boundaries=(2, 4, 7)),
    ]
    for place, a in enumerate(results):
        for b in results[:place]:
            gap = float((a.logprobs_SV - b.logprobs_SV).abs().max())
            assert gap > 0.01
    # The first token is read before anything is compressed.
    assert torch.equal(results[0].logprobs_SV[0], results[2].logprobs_SV[0])
    assert torch.equal(results[1].logprobs_SV[0], results[3].logprobs_SV[0])


def test_a_cache_that_is_not_compressed_shows(
    model: LanguageModel, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run(model, prompt, (2, 3))
    monkeypatch.setattr(decoder.Prefill, "compress", lambda self, *settings: None)
    assert distance(right, run(model, prompt, (2, 3))) > 0.01


def test_quotas_that_treat_all_events_alike_show(
    model: LanguageModel, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run(model, prompt, (2,))
    monkeypatch.setattr(pruning, "quota_weights", lambda key, entry: [Fraction(1)] * len(key))
    wrong = run(model, prompt, (2,))
    assert wrong.kept[1] != right.kept[1]
    assert len(wrong.kept[1][0]) == len(right.kept[1][0])
    assert float((right.logprobs_SV[0] - wrong.logprobs_SV[0]).abs().max()) > 0.01


def test_positions_that_close_the_gaps_show(
    model: LanguageModel, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run(model, prompt, (2,))
    original = decoder.run_layer

    def renumbered(*args: Any) -> tuple[Tensor, Tensor]:
        model_, layer, hidden_PD, places, *rest = args
        if len(places) > 1:
            places = Positions.counted(len(places)).places
        return original(model_, layer, hidden_PD, places, *rest)

    monkeypatch.setattr(decoder, "run_layer", renumbered)
    wrong = run(model, prompt, (2,))
    assert float((right.logprobs_SV[0] - wrong.logprobs_SV[0]).abs().max()) > 0.01
