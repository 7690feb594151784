"""The end of a request stops its work, once and from any thread."""

from __future__ import annotations

from contextvars import copy_context

from metok_vllm.video.requester import REQUESTER, Requester, current


def test_callbacks_run_once() -> None:
    ended: list[str] = []
    requester = Requester()
    was_finished = requester.finished
    with requester.on_finish(lambda: ended.append("decode")):
        requester.finish()
        requester.finish()
    assert (was_finished, requester.finished) == (False, True)
    assert ended == ["decode"]


def test_callbacks_of_closed_blocks_do_not_run() -> None:
    ended: list[str] = []
    requester = Requester()
    with requester.on_finish(lambda: ended.append("decode")):
        pass
    requester.finish()
    assert ended == []


def test_callbacks_run_at_once_after_the_end() -> None:
    ended: list[str] = []
    requester = Requester()
    requester.finish()
    with requester.on_finish(lambda: ended.append("decode")):
        assert ended == ["decode"]


def test_each_context_has_its_own_requester() -> None:
    def inside() -> Requester:
        REQUESTER.set(Requester(client="a"))
        return current()

    assert copy_context().run(inside).client == "a"
    assert current().client == ""
    assert current() is not current(), "anonymous requesters are not one client's"
