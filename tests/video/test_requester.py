"""A request's end reaches the work that is done for it, once and from any thread."""

from __future__ import annotations

from contextvars import copy_context

from metok_vllm.video.requester import REQUESTER, Requester, current


def test_leaving_runs_what_waits_for_it_once() -> None:
    ended: list[str] = []
    requester = Requester()
    was_gone = requester.gone
    with requester.on_leave(lambda: ended.append("decode")):
        requester.leave()
        requester.leave()
    assert (was_gone, requester.gone) == (False, True)
    assert ended == ["decode"]


def test_finished_work_is_not_ended() -> None:
    ended: list[str] = []
    requester = Requester()
    with requester.on_leave(lambda: ended.append("decode")):
        pass
    requester.leave()
    assert ended == []


def test_work_begun_after_the_end_is_ended_at_once() -> None:
    ended: list[str] = []
    requester = Requester()
    requester.leave()
    with requester.on_leave(lambda: ended.append("decode")):
        assert ended == ["decode"]


def test_each_context_has_its_own() -> None:
    def inside() -> Requester:
        REQUESTER.set(Requester(client="a"))
        return current()

    assert copy_context().run(inside).client == "a"
    assert current().client == ""
    assert current() is not current(), "anonymous requesters are not one client's"
