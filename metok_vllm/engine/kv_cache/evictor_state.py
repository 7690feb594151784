"""Who holds what: the plans of the requests in the scheduler, and what was evicted for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from metok_vllm.plan.prompt import PromptPlan


@dataclass
class EvictorState:
    """Shared by the block managers of all stages.

    `reach` is the largest number of tokens that a request was given slots for since its prefill
    began, while its blocks are those of the prefill; once they are trimmed it has no entry.
    `room` is the number of tokens up to which a request has slots in every stage.
    """

    plans: dict[str, PromptPlan] = field(default_factory=dict)
    reach: dict[str, int] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)
    freed_blocks: int = 0

    def release(self, request_id: str) -> None:
        """The request's blocks went back to the pool: it ended or was preempted."""
        self.reach.pop(request_id, None)
        self.room.pop(request_id, None)

    def drop(self, request_id: str) -> None:
        """The request is gone."""
        self.plans.pop(request_id, None)
        self.release(request_id)
