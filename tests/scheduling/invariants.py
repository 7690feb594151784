"""What must hold between any two calls into the scheduler."""

from __future__ import annotations

from collections import Counter

from vllm.v1.request import RequestStatus

from metok_vllm.engine.request_plans import ATTRIBUTE
from tests.scheduling.drive import Drive, Life
from tests.scheduling.paper_worker import prompt_names


def check(drive: Drive) -> None:
    """All of it."""
    check_every_block_has_one_place(drive)
    check_nothing_in_flight_is_taken_back(drive)
    for request in drive.scheduler.running:
        check_request_holds_what_it_needs(drive, request.request_id)
    check_plans_belong_to_requests(drive)
    check_waiting_requests_hold_nothing(drive)
    check_buffer_rows(drive)


def check_buffer_rows(drive: Drive) -> None:
    """Rows belong to prompts between two chunks, to one each."""
    reserved = drive.scheduler.evictor_state.buffer._reserved
    rows = [row for span in reserved.values() for row in span]
    assert len(rows) == len(set(rows)) <= drive.settings.buffer
    for name, span in reserved.items():
        life = drive.lives[name]
        assert life.plan is not None
        assert len(span) == life.plan.prompt_tokens
        assert drive.scheduler.requests[name].status == RequestStatus.RUNNING
    for request in drive.scheduler.running:
        life = drive.lives[request.request_id]
        if life.plan is not None and life.scheduled:
            between = life.scheduled[-1] < life.plan.prompt_tokens and not life.found
            assert not between or request.request_id in reserved


def check_after_schedule(drive: Drive, output: object) -> None:
    """What holds when the worker has just run the step that was scheduled."""
    check(drive)
    staged = getattr(output, ATTRIBUTE)
    assert staged.total_blocks == drive.settings.blocks
    assert staged.free_blocks == drive.pool.get_num_free_blocks()
    check_records(drive)
    batch = drive.worker.input_batch
    for request in drive.scheduler.running:
        name = request.request_id
        held = [[b.block_id for b in m.req_to_blocks[name]] for m in drive.managers]
        used = drive.worker.requests[name].block_ids
        if used != held:
            check_same_but_for_the_head(drive, name, used, held)
        if name in batch.req_ids:
            row = batch.req_ids.index(name)
            assert [table.row(row) for table in batch.block_table] == used
        check_full_blocks_are_cached(drive, name)
        assert drive.worker.metok_plans.get(name) == drive.scheduler.evictor_state.plans.get(name)


def check_same_but_for_the_head(
    drive: Drive, name: str, used: list[list[int]], held: list[list[int]]
) -> None:
    """The worker cuts a table in the first step that sees what decoding holds.

    Without such a step it still has the head that the scheduler freed once the ones before were
    processed; before that, the scheduler still holds it.
    """
    plan, life = drive.lives[name].plan, drive.lives[name]
    assert plan is not None
    assert life.trimmed != (life.scheduled[-1] > plan.decode_from)
    counts = [plan.head_blocks[stage] for stage in drive.settings.stage_of_group]
    whole, cut = (used, held) if life.trimmed else (held, used)
    assert [blocks[count:] for blocks, count in zip(whole, counts, strict=True)] == cut


def check_records(drive: Drive) -> None:
    """A valid record's blocks hold its prompt in every stage, whoever ran it."""
    records, size = drive.scheduler.cache.records, drive.settings.block_size
    assert len(records) <= records.most
    for record in records:
        if not record.is_valid:
            continue
        name = drive.first_with[record.prompt.key, record.prompt.rest.tobytes()]
        plan = drive.lives[name].plan
        assert plan is not None
        of_prompt = plan, drive.contents[name], drive.cores[name]
        for gid, blocks in enumerate(record.blocks):
            names = prompt_names(gid, drive.settings.stage_of_group[gid], *of_prompt)
            slots = [block.block_id * size + i for block in blocks for i in range(size)]
            assert len(blocks) == -(-len(names) // size)
            held = drive.worker.cache[slots[: len(names)]]
            assert (held == names).all(), f"the record of {name} lost group {gid}"


def check_every_block_has_one_place(drive: Drive) -> None:
    """Free or held, counted as often as held, and shared only as plain requests' prefixes."""
    free = [block.block_id for block in drive.pool.free_block_queue.get_all_free_blocks()]
    assert len(free) == len(set(free)) == drive.pool.get_num_free_blocks()
    owners: dict[int, list[tuple[int, str]]] = {}
    for gid, manager in enumerate(drive.managers):
        for name, blocks in manager.req_to_blocks.items():
            assert name in drive.scheduler.requests or not blocks
            for block in blocks:
                owners.setdefault(block.block_id, []).append((gid, name))
    deferred = [b.block_id for _, blocks in drive.scheduler.deferred_frees for b in blocks]
    held = owners.keys() | set(deferred)
    assert not held & set(free)
    assert len(free) + len(held) == drive.settings.blocks
    null = drive.pool.null_block.block_id
    assert null not in held
    counts = Counter({block: len(who) for block, who in owners.items()}) + Counter(deferred)
    for block in drive.pool.blocks:
        if block.block_id != null:
            assert block.ref_cnt == counts[block.block_id]
    for number, who in owners.items():
        if len(who) > 1:
            assert drive.settings.caching
            assert len({gid for gid, _ in who}) == 1
            assert len({name for _, name in who}) == len(who)
            plans = [drive.lives[name].plan for _, name in who]
            if all(plan is None for plan in plans):
                assert drive.pool.blocks[number].block_hash is not None
            else:
                # What went on from a record may outlive it.
                assert all(drive.cores[name] for _, name in who)


def check_nothing_in_flight_is_taken_back(drive: Drive) -> None:
    """What a step writes to stays with its request until the step is delivered.

    Blocks of aborted and preempted requests may be reused: steps run in order, so the next owner
    writes later.
    """
    for step in drive.in_flight:
        for name, written in step.written.items():
            request = drive.scheduler.requests.get(name)
            if request is None or request.num_preemptions != step.lives[name][0]:
                continue
            for manager, blocks in zip(drive.managers, written, strict=True):
                held = {block.block_id for block in manager.req_to_blocks[name]}
                assert blocks <= held, f"{name} writes to {blocks - held}, which it lost"


def check_request_holds_what_it_needs(drive: Drive, name: str) -> None:
    """Exactly the blocks of its tokens: the prefill's until it is processed, then the rest's."""
    life = drive.lives[name]
    for gid, manager in enumerate(drive.managers):
        expected = -(-_slots(life, drive.settings.stage_of_group[gid]) // manager.block_size)
        assert len(manager.req_to_blocks[name]) == expected, f"{name}, group {gid}: {life}"


def _slots(life: Life, stage: int) -> int:
    if life.plan is None:
        return life.scheduled[-1]
    if life.trimmed:
        prompt = life.plan.prompt_tokens
        return max(prompt, life.scheduled[-1]) - life.plan.decode_dropped[stage]
    if life.found:
        return life.scheduled[-1] - life.plan.prefill_dropped[stage]
    most = max(life.plan.slots(stage, tokens) for tokens in life.scheduled)
    if life.plan.unit and life.scheduled[-1] >= life.plan.prompt_tokens:
        return life.scheduled[-1] - life.plan.prefill_dropped[stage]
    return most


def check_full_blocks_are_cached(drive: Drive, name: str) -> None:
    """A plain request's full blocks can be found by their prefix, a METok request's never.

    Scheduled ahead, a block is entered once the last of its tokens is known.
    """
    life = drive.lives[name]
    known = life.processed if drive.settings.ahead else life.scheduled[-1]
    for manager in drive.managers:
        hashed = [block.block_hash is not None for block in manager.req_to_blocks[name]]
        if drive.cores[name] is not None and drive.settings.caching:
            continue  # `check_records`
        if life.plan is not None or not drive.settings.caching:
            assert not any(hashed), f"others can find what {name} holds"
        else:
            assert all(hashed[: known // manager.block_size])


def check_plans_belong_to_requests(drive: Drive) -> None:
    """Plans live as long as their requests; prefill forms are of running requests only."""
    state = drive.scheduler.evictor_state
    expected = {name: drive.lives[name].plan for name in drive.alive}
    assert state.plans == {name: plan for name, plan in expected.items() if plan is not None}
    running = {request.request_id for request in drive.scheduler.running}
    assert state.max_allocated_tokens.keys() | state.capacity.keys() <= running
    assert state.recorded | state.heads.keys() <= running
    assert state.prompts.keys() <= state.plans.keys()
    assert state.hits <= state.plans.keys()


def check_waiting_requests_hold_nothing(drive: Drive) -> None:
    """Neither blocks nor encoder outputs: what waits must not stand in another's way."""
    for name in drive.alive:
        request = drive.scheduler.requests[name]
        if request.status != RequestStatus.RUNNING:
            assert not any(manager.req_to_blocks.get(name) for manager in drive.managers)
            kept = drive.scheduler.encoder_cache_manager.get_cached_input_ids(request)
            assert not kept, f"{name} waits and keeps the encoder's outputs {kept}"


def check_empty(drive: Drive) -> None:
    """Nothing is left of any request."""
    assert not drive.alive
    assert drive.pool.get_num_free_blocks() == drive.settings.blocks
    assert not drive.scheduler.evictor_state.plans
    assert not drive.scheduler.covered_tokens
    assert not drive.scheduler.evictor_state.max_allocated_tokens
    assert not drive.scheduler.evictor_state.capacity
    assert not any(any(manager.req_to_blocks.values()) for manager in drive.managers)
    assert not any(manager.num_cached_block for manager in drive.managers)
    assert not any(drive.scheduler.encoder_cache_manager.cached.values())
    assert not drive.worker.requests
    assert not drive.worker.metok_plans
    assert not len(drive.scheduler.evictor_state.buffer)
