"""PromptPlan: counts as the reference makes them, and slots that the scheduler can rely on."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.config import METokConfig
from metok_vllm.config.methods import ENCODER_RULES
from metok_vllm.plan.focus import Focus
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan, Pruning
from metok_vllm.plan.request import RequestPlan, VideoPlan
from metok_vllm.plan.tokens import key_event_count
from metok_vllm.plan.video_counts import VideoCounts, in_whole_blocks
from tests.layouts import square
from tests.reference.pruning import planned_tokens

KEEP, END = Fraction("0.76"), 99
hundredths = st.integers(1, 100).map(lambda n: n / 100)


def wishes(
    stages: tuple[int, ...] = (2, 3),
    keep: Fraction = KEEP,
    decode: Fraction = Fraction(0),
    share: Fraction = Fraction(3, 5),
) -> Pruning:
    return Pruning(stages, keep, decode, share)


def plan(prompt: int, *videos: tuple[int, int], **wanted: Any) -> PromptPlan | None:
    """Plan of a prompt with videos at (first token, tokens), all with the same wishes."""
    pruning = wishes(**wanted)
    named = [(str(n), start, tokens, pruning) for n, (start, tokens) in enumerate(videos)]
    return PromptPlan.of(prompt, named)


@st.composite
def plans(draw: st.DrawFn) -> PromptPlan:
    """Prompts with one to three videos, text between them or not, some with separators."""
    pruning = wishes(
        stages=draw(st.sampled_from([(2, 3), (2,), (3,)])),
        keep=Fraction(repr(draw(hundredths))),
        decode=Fraction(draw(st.integers(0, 100)), 100),
        share=Fraction(draw(st.integers(1, 5)), 5),
    )
    videos, end = [], 0
    for number in range(draw(st.integers(1, 3))):
        start = end + draw(st.integers(0, 5))
        tokens = draw(st.integers(1, 60))
        fixed = draw(st.just(0) | st.integers(0, tokens))
        last = fixed == tokens or (fixed > 0 and draw(st.booleans()))
        of_video = replace(pruning, separators=fixed, ends_in_separator=last)
        videos.append((str(number), start, tokens, of_video))
        end = start + tokens
    made = PromptPlan.of(end + draw(st.integers(0, 5)), videos)
    assert made is not None
    return made


class TestCounts:
    @given(
        frames=st.integers(1, 140),
        grid=st.integers(2, 27),
        events=st.integers(1, 9),
        ratio=hundredths,
        per_event=st.one_of(st.integers(1, 40), hundredths),
        keep=hundredths,
        stage1=st.booleans(),
        before=st.integers(0, 3),
        after=st.integers(0, 2),
    )
    def test_as_the_reference_counts(
        self,
        frames: int,
        grid: int,
        events: int,
        ratio: float,
        per_event: int | float,
        keep: float,
        stage1: bool,
        before: int,
        after: int,
    ) -> None:
        config = METokConfig(
            stages=(1, 2, 3) if stage1 else (2, 3),
            num_events=events,
            key_event_ratio=ratio,
            key_frames_per_event=per_event,
            keep_ratio=keep,
        )
        video = replace(
            square(frames, grid), before=((1,) * before,) * frames, after=((2,) * after,) * frames
        )
        encoded, separators = video.tokens(config), frames * (before + after)
        strides = config.strides
        counts = Pruning.of_video(config, video).counts(encoded)
        assert counts.separators == separators
        assert counts.prefill == planned_tokens(
            frames,
            encoded,
            events,
            ratio,
            per_event,
            strides,
            grid,
            keep,
            stage1,
            separators=separators,
        )

    def test_by_hand(self) -> None:
        # 60 of 100 in key events: 0.76 * (60 + 40 / 2) = 60.8 and 0.76 ** 2 * 60 = 34.7.
        counts = wishes(decode=Fraction(1, 4)).counts(100)
        assert counts.prefill == (100, 61, 35, 0)
        assert counts.decode == (100, 16, 9, 0)

    @pytest.mark.parametrize(
        ("stages", "decode", "ran", "held"),
        [
            # The hundred others as by hand above, and 20 separators everywhere.
            ((2,), 0, (81, 55, 20), (81, 55, 20)),
            ((2, 3), 0, (81, 55, 20), (20, 20, 20)),
            ((2, 3), Fraction(1, 2), (81, 55, 20), (51, 38, 20)),
            ((3,), 0, (120, 120, 120), (20, 20, 20)),
            ((3,), Fraction(1, 2), (120, 120, 120), (70, 70, 20)),
        ],
    )
    def test_separators_stay_beside_what_is_kept(
        self, stages: Any, decode: Any, ran: Any, held: Any
    ) -> None:
        pruning = replace(wishes(stages, decode=Fraction(decode)), separators=20)
        counts = pruning.counts(120)
        assert (counts.prefill, counts.decode) == ((120, *ran), (120, *held))

    def test_stages_that_are_off_leave_the_tokens(self) -> None:
        assert wishes((2,)).counts(100).decode == (100, 61, 35, 0)
        assert wishes((3,)).counts(100).prefill == (100,) * NUM_STAGES
        assert wishes((3,)).counts(100).decode == (100, 0, 0, 0)
        assert wishes((3,), decode=Fraction(1)).counts(100).decode == (100, 100, 100, 0)

    def test_shares_are_the_decimals_that_users_write(self) -> None:
        config = METokConfig(keep_ratio=0.07, decode_keep=0.29)
        pruning = Pruning.of(config, Fraction(1))
        assert (pruning.keep_ratio, pruning.decode_keep) == (Fraction(7, 100), Fraction(29, 100))
        assert pruning.counts(100).prefill[1] == 7  # as a float, 0.07 * 100 is over 7

    def test_the_share_of_key_events_without_stage_1_is_theirs(self) -> None:
        config = METokConfig(stages=(2, 3))
        assert square(32, 14).key_share(config) == Fraction(key_event_count(5, 0.6), 5)

    def test_one_event_is_all_key(self) -> None:
        config = METokConfig(num_events=1)
        assert square(32, 14).key_share(config) == 1
        encoded = square(32, 14).encoded_tokens(config)
        counts = Pruning.of(config, Fraction(1)).counts(encoded)
        assert counts.prefill[1:] == (-(-encoded * 76 // 100), -(-encoded * 76 * 76 // 10_000), 0)

    @given(tokens=st.integers(1, 500), share=hundredths, fixed=st.integers(0, 90))
    def test_fastv_drops_once_and_holds_what_it_ran_on(
        self, tokens: int, share: float, fixed: int
    ) -> None:
        config = METokConfig(rule="fastv", rule_keep=share, decode_keep=0.5)
        counts = Pruning.of(config, Fraction(1, 2), fixed).counts(tokens + fixed)
        kept = fixed - (-Fraction(repr(share)) * tokens // 1)
        assert counts.prefill == counts.decode == (tokens + fixed, kept, kept, kept)

    @pytest.mark.parametrize("rule", ENCODER_RULES)
    def test_a_rule_in_the_encoder_leaves_the_decoder_alone(self, rule: str) -> None:
        pruning = Pruning.of(METokConfig(rule=rule, decode_keep=0.5), Fraction(1, 2))
        assert PromptPlan.of(120, [("a", 10, 100, pruning)]) is None


class TestSlots:
    @given(plans())
    def test_never_more_than_the_tokens_and_never_fewer_than_none(self, made: PromptPlan) -> None:
        for stage in range(NUM_STAGES):
            for tokens in range(made.prompt_tokens + 3):
                assert 0 <= made.slots(stage, tokens) <= tokens

    @given(plans())
    def test_until_the_last_chunk_only_the_first_stage_runs(self, made: PromptPlan) -> None:
        for tokens in range(made.prompt_tokens):
            assert [made.slots(s, tokens) for s in range(NUM_STAGES)] == [tokens, 0, 0, 0]

    @given(plans())
    def test_deeper_stages_hold_no_more(self, made: PromptPlan) -> None:
        for tokens in (made.prompt_tokens - 1, made.prompt_tokens, made.prompt_tokens + 1):
            needed = [made.slots(stage, tokens) for stage in range(NUM_STAGES)]
            assert needed[0] == tokens, "the first stage holds everything"
            assert needed == sorted(needed, reverse=True)

    @given(plans())
    def test_every_new_token_takes_one_slot(self, made: PromptPlan) -> None:
        for stage in range(NUM_STAGES):
            first = made.slots(stage, made.prompt_tokens + 1)
            assert made.slots(stage, made.prompt_tokens + 9) == first + 8

    @given(plans())
    def test_decoding_never_holds_what_the_prefill_did_not_run_on(self, made: PromptPlan) -> None:
        assert all(
            held <= ran
            for held, ran in zip(made.visual_tokens(decode=True), made.visual_tokens(), strict=True)
        )
        for stage in range(NUM_STAGES):
            assert made.decode_dropped[stage] >= made.prefill_dropped[stage]

    @given(plans())
    def test_text_is_never_dropped(self, made: PromptPlan) -> None:
        text = made.prompt_tokens - sum(video.tokens for video in made.videos)
        last = NUM_STAGES - 1
        assert (
            made.slots(last, made.prompt_tokens + 1)
            == text + 1 + made.visual_tokens(decode=True)[last]
        )
        assert text >= 1
        separators = sum(video.counts.separators for video in made.videos)
        assert made.visual_tokens()[last] >= separators
        assert made.visual_tokens(decode=True)[last] >= separators
        if made.evicts:
            assert made.visual_tokens(decode=True)[last] == separators


class TestWholeBlocks:
    @given(plans(), st.integers(1, 40))
    def test_every_stage_gives_whole_blocks_back(self, made: PromptPlan, unit: int) -> None:
        videos = [video.counts for video in made.videos]
        for stage in range(NUM_STAGES):
            before = sum(video.prefill[stage] - video.decode[stage] for video in videos)
            after = [v.prefill[stage] - v.decode[stage] for v in in_whole_blocks(videos, unit)]
            assert sum(after) == before // unit * unit
            assert min(after) >= 0

    def test_what_stays_stays_with_the_first_videos(self) -> None:
        videos = [VideoCounts((9, 5, 2, 0), (9, 3, 0, 0)), VideoCounts((9, 9, 9, 0), (9, 0, 1, 0))]
        first, second = in_whole_blocks(videos, 4)
        # Of 11 rows in stage 1 three stay, and of 10 in stage 2 two.
        assert (first.decode, second.decode) == ((9, 5, 2, 0), (9, 1, 1, 0))


class TestFocus:
    IDS = (1, 7, 7, 2, 2, END, 3, 2, END, 3)  # two visual tokens, and two turns

    @pytest.mark.parametrize(
        ("focus", "core"),
        [
            (Focus(), None),
            (Focus("video"), 4),
            (Focus("conversation"), None),  # no token is known to end a turn
            (Focus("conversation", (END,)), 5),
        ],
    )
    def test_where_the_core_ends(self, focus: Focus, core: int | None) -> None:
        assert focus.core_tokens(self.IDS, 3) == core
        # A later turn has the same core.
        assert focus.core_tokens((*self.IDS, 2, 2, END, 3), 3) == core

    def test_one_row_after_the_video_scores(self) -> None:
        focus = Focus("conversation", (END,))
        assert focus.core_tokens((1, 7, 7, END, 3), 3) == 4
        assert focus.core_tokens((1, 7, 7, END), 3) is None, "nothing would be left to run"
        assert focus.core_tokens((1, 7, 7), 3) is None
        assert Focus("video").core_tokens((1, 7, 7, 2), 3) is None

    def test_only_the_core_scores(self) -> None:
        videos = [("a", 10, 100, wishes(decode=Fraction(1, 4)))]
        made = PromptPlan.of(160, videos, 120, 16)
        assert made is not None
        assert made.scoring == range(110, 120)
        # 45 and 26 tokens of (61, 35) would go: two blocks and one do.
        assert made.visual_tokens(decode=True) == (100, 61 - 32, 35 - 16, 0)
        assert made.decode_dropped == (0, 39 + 32, 65 + 16, 100)

    def test_eviction_waits_for_tokens(self) -> None:
        pruning = replace(wishes(decode=Fraction(1, 4)), evict_after=7)
        made = PromptPlan.of(160, [("a", 10, 100, pruning)], block_size=16)
        assert made is not None
        assert (made.head_blocks, made.decode_from) == ((0, 2, 1, 0), 166)
        # The seventh token comes of the sixth, at 165, which still sees everything.
        assert made.slots(1, 166) == 166 - 39
        assert made.slots(1, 167) == 167 - 39 - 32

    def test_no_prompt_goes_on_from_one_that_its_last_token_ranked(self) -> None:
        pruning = Pruning.of(METokConfig(rule="fastv", focus="video"), Fraction(1))
        made = PromptPlan.of(160, [("a", 10, 100, pruning)], 111, 16)
        assert made is not None
        assert (made.core, made.scoring) == (None, range(159, 160))


class TestOnePrompt:
    def test_a_video_in_the_middle(self) -> None:
        made = plan(120, (10, 100))
        assert made is not None
        assert (made.first_visual, made.query_rows) == (10, 10)
        assert made.visual_tokens() == (100, 61, 35, 0)
        assert made.prefill_dropped == (0, 39, 65, 100)
        assert made.decode_dropped == (0, 100, 100, 100)
        assert [made.slots(s, 120) for s in range(4)] == [120, 81, 55, 20]
        assert [made.slots(s, 121) for s in range(4)] == [121, 21, 21, 21]

    def test_the_last_row_answers_and_stays(self) -> None:
        made = plan(110, (10, 100))
        assert made is not None
        assert made.videos[0].tokens == 99
        assert made.query_rows == 1
        assert made.slots(NUM_STAGES - 1, 110) == 11

    @pytest.mark.parametrize(("last", "kept"), [(True, 19), (False, 20)])
    def test_a_last_token_that_is_a_separator_is_one_less(self, last: bool, kept: int) -> None:
        """Either way 20 separators stay: the last row of the prompt, or one of the video's."""
        pruning = replace(wishes(), separators=20, ends_in_separator=last)
        made = PromptPlan.of(130, [("a", 10, 120, pruning)])
        inside = PromptPlan.of(131, [("a", 10, 120, pruning)])
        assert made is not None
        assert inside is not None
        assert made.visual_tokens(decode=True) == (119, kept, kept, kept)
        assert made.slots(3, 131) == 10 + kept + 1 + 1
        assert inside.visual_tokens(decode=True) == (120, 20, 20, 20)

    def test_a_video_of_one_token_that_ends_the_prompt(self) -> None:
        made = plan(11, (10, 1))
        assert made is not None
        assert made.visual_tokens() == (0,) * NUM_STAGES
        assert made.decode_dropped == (0,) * NUM_STAGES

    def test_videos_add_up_in_the_order_of_the_prompt(self) -> None:
        made = plan(300, (150, 100), (10, 100))
        assert made is not None
        assert [video.start for video in made.videos] == [10, 150]
        assert made.visual_tokens() == (200, 122, 70, 0)
        assert (made.first_visual, made.query_rows) == (10, 50)

    def test_whether_anybody_must_be_ranked(self) -> None:
        some = Fraction(1, 10)
        pruned, kept = plan(120, (10, 100)), plan(120, (10, 100), stages=(3,), decode=some)
        evicted = plan(120, (10, 100), stages=(3,))
        separated = PromptPlan.of(120, [("a", 10, 100, replace(wishes((3,)), separators=1))])
        assert pruned is not None
        assert kept is not None
        assert evicted is not None
        assert separated is not None
        assert (pruned.needs_scores, kept.needs_scores) == (True, True)
        assert not evicted.needs_scores
        assert separated.needs_scores, "or nothing would tell its separators from visual tokens"

    def test_fastv_asks_the_last_token_alone_and_evicts_nothing(self) -> None:
        pruning = Pruning.of(METokConfig(rule="fastv"), Fraction(1))
        made = PromptPlan.of(300, [("a", 10, 100, pruning), ("b", 150, 101, pruning)])
        assert made is not None
        assert made.query_rows == 1
        assert (made.prunes, made.evicts, made.needs_scores) == (True, False, True)
        assert made.visual_tokens() == made.visual_tokens(decode=True) == (201, 51, 51, 51)
        assert made.prefill_dropped == made.decode_dropped == (0, 150, 150, 150)
        last = PromptPlan.of(111, [("a", 10, 101, pruning)])
        assert last is not None
        assert (last.visual_tokens(), last.query_rows) == ((100, 25, 25, 25), 1)


class TestNoPlan:
    def test_without_videos_or_stages(self) -> None:
        assert plan(120) is None
        assert plan(120, (10, 100), stages=()) is None

    def test_a_request_reads_its_plan_off_its_videos(self) -> None:
        pruning = wishes()
        times = (0.0, 1.0)
        videos = (
            VideoPlan("a", 2, times, 2.0, 200, 100, 10, pruning),
            VideoPlan("b", 2, times, 2.0, 200, 100, 150, pruning),
        )
        request = RequestPlan("balanced", (1, 2, 3), "user_turn", videos)
        made = request.prompt_plan(300)
        assert made is not None
        assert [video.key for video in made.videos] == ["a", "b"]
        assert made.visual_tokens() == (200, 122, 70, 0)

    def test_a_core_moves_with_its_videos(self) -> None:
        video = VideoPlan("a", 2, (0.0, 1.0), 2.0, 200, 100, 10, wishes())
        request = RequestPlan("balanced", (1, 2, 3), "user_turn", (video,), core=120)
        made = request.moved([30]).prompt_plan(200, 16)
        assert made is not None
        assert (made.core, made.unit, made.scoring) == (140, 16, range(130, 140))
