import pytest
import torch
import trio

from p2pnode.errors import AveragingError, BehindError, HostLostError, SchemaError, StepLostError
from p2pnode.swarm.splitting.events import CaughtUp, FellBehind, SplitStepDropped, SplitStepTaken
from p2pnode.trainer.sources import CallPolicy

POLICY = CallPolicy(timeout=10.0)

OPTIMIZERS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "adam", "clip_grad_norm": 0.1},
    {"optimizer": "adagrad"},
    {"optimizer": "rmsprop", "schedule": "linear", "warmup_steps": 2, "total_steps": 9},
]


def batch(rows):
    return torch.randn(rows, 8), torch.randn(rows, 8)


async def step_both(trainer, whole, same, rows=6, *, settle=True):
    """Take a step of the swarm, and one of the whole layer, whose answers must be the same."""
    x, gradient = batch(rows)
    outputs, found, by = await trainer.step(x, gradient, settle=settle)
    same(outputs, whole.forward([x])[0])
    same(found, whole.backward([x], [gradient])[0])
    return by


def crash_in(peer, phase, *, after):
    """Let a peer die in its next part of a phase, before it or after it."""
    owner = {"forward": peer.split._experts, "reduce": peer.reducer}.get(phase, peer.split.steps)
    original = getattr(owner, phase)

    async def crashing(*args, **options):
        if after:
            await original(*args, **options)
        peer.crash()
        await trio.sleep_forever()

    setattr(owner, phase, crashing)


@pytest.mark.parametrize("hosting", OPTIMIZERS, ids=lambda each: "-".join(map(str, each.values())))
async def test_a_split_layer_learns_what_the_whole_one_does(
    open_swarm, same, autojump_clock, hosting
):
    async with open_swarm(hosting=hosting) as swarm:
        peers = await swarm.add(3)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        before = peers[0].weights
        for rows in (7, 1, 2, 64):
            by = await step_both(trainer, whole, same, rows)
            assert sum(len(part) for _, part in by) == rows
            for peer in peers:
                same(peer.weights, whole.parameters)
                assert (peer.backend.steps, peer.backend.rows) == (whole.steps, whole.rows)
        assert not torch.allclose(before[0], peers[0].weights[0], atol=1e-3)
        assert len({peer_id for peer_id, _ in by}) == 3
        for peer in peers:
            assert peer.split.steps.kept_bytes == peer.budget.bytes_in_flight == 0


@pytest.mark.parametrize(("layer", "shape"), [("linear", (8,)), ("transformer", (128, 8))])
async def test_any_layer_that_treats_rows_alike_can_be_split(
    open_swarm, same, autojump_clock, layer, shape
):
    # With Adam, weights whose gradients are nearly zero would step by the last bits of these.
    async with open_swarm(hosting={"layer": layer, "optimizer": "sgd"}) as swarm:
        peers = await swarm.add(2)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        for _ in range(2):
            x, gradient = torch.randn(5, *shape), torch.randn(5, *shape)
            outputs, found, _ = await trainer.step(x, gradient)
            same(outputs, whole.forward([x])[0])
            same(found, whole.backward([x], [gradient])[0])
        for peer in peers:
            same(peer.weights, whole.parameters)


@pytest.mark.parametrize(
    ("moment", "which"),
    [
        ("before forward", 2),
        ("before backward", 0),
        ("after backward", 2),
        ("before reduce", 0),
        ("before reduce", 2),
        ("after reduce", 1),
        ("before prepare", 0),
        ("after prepare", 2),
        ("before commit", 0),
        ("before commit", 2),
        ("after commit", 0),
    ],
)
async def test_a_peer_that_is_killed_in_any_phase_costs_no_row_and_no_step(
    open_swarm, same, autojump_clock, moment, which
):
    when, phase = moment.split()
    async with open_swarm() as swarm:
        await swarm.add(3)
        peers = swarm.in_order()
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        await step_both(trainer, whole, same)
        crash_in(peers[which], phase, after=when == "after")
        for _ in range(2):
            await step_both(trainer, whole, same, settle=False)
        await trainer.caller.settle()
        await trio.sleep(20)  # whatever was in doubt is settled
        await step_both(trainer, whole, same)
        for peer in peers:
            if peer is not peers[which]:
                same(peer.weights, whole.parameters)
                assert (peer.backend.steps, peer.backend.rows) == (4, 24)
                assert peer.split.steps.kept_bytes == 0


@pytest.mark.parametrize("phase", ["forward", "backward", "prepare", "commit"])
async def test_a_peer_that_falls_silent_in_any_phase_costs_no_row_and_no_step(
    open_swarm, same, autojump_clock, phase
):
    async with open_swarm() as swarm:
        await swarm.add(3)
        *others, silent = swarm.in_order()
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        await step_both(trainer, whole, same)
        owner = silent.split._experts if phase == "forward" else silent.split.steps

        async def sleep(*_args, **_options):
            await trio.sleep_forever()

        setattr(owner, phase, sleep)
        for _ in range(2):
            await step_both(trainer, whole, same)
        for peer in others:
            same(peer.weights, whole.parameters)
            assert (peer.backend.steps, peer.backend.rows) == (3, 18)


@pytest.mark.parametrize("told", [0, 1, 2])
async def test_a_trainer_lost_between_the_phases_leaves_all_peers_stepped_or_none(
    open_swarm, same, autojump_clock, told
):
    async with open_swarm() as swarm:
        await swarm.add(3)
        peers = swarm.in_order()
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        await step_both(trainer, whole, same)
        commit = trainer.caller._stepping._commit

        async def half(work, ready):
            if told:
                await commit(work, ready[:told])
            raise StepLostError("the trainer is lost")

        trainer.caller._stepping._commit = half
        x, gradient = batch(6)
        with pytest.raises(StepLostError):
            await trainer.step(x, gradient)
        if told:
            whole.backward([x], [gradient])
        assert [peer.backend.steps for peer in peers] == [1 + (at < told) for at in range(3)]
        await trio.sleep(20)
        for peer in peers:
            same(peer.weights, whole.parameters)
            assert peer.backend.steps == whole.steps
            assert peer.split.steps.kept_bytes == 0
        trainer.caller._stepping._commit = commit
        by = await step_both(trainer, whole, same)
        assert len({peer_id for peer_id, _ in by}) == 3


async def test_a_step_ends_beside_the_next_call_which_has_its_weights(
    open_swarm, same, autojump_clock
):
    async with open_swarm(delay=0.05) as swarm:
        peers = await swarm.add(3)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        for rows in (6, 2, 6, 6):
            await step_both(trainer, whole, same, rows, settle=False)
            assert {peer.backend.steps for peer in peers} == {whole.steps - 1}
        await trainer.caller.settle()
        for peer in peers:
            same(peer.weights, whole.parameters)
            assert (peer.backend.steps, peer.split.steps.kept_bytes) == (4, 0)


async def test_a_forward_call_that_waits_too_long_for_a_step_blames_nobody(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        peers = await swarm.add(3)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        await step_both(trainer, whole, same)
        take = peers[1].split.steps.take

        async def dawdle(turn):
            await trio.sleep(3)  # splitting.question_timeout is one
            await take(turn)

        peers[1].split.steps.take = dawdle
        for _ in range(2):
            by = await step_both(trainer, whole, same, settle=False)
        assert {peer_id for peer_id, _ in by} == {peer.peer_id for peer in peers}
        await trainer.caller.settle()
        for peer in peers:
            same(peer.weights, whole.parameters)


async def test_a_step_that_was_not_taken_is_told_once_by_the_next_call(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        peers = await swarm.add(2)
        trainer, whole = await swarm.trainer(), swarm.unsplit()

        async def fail(*_args, **_options):
            raise AveragingError("no sum today")

        reduce = [peer.reducer.reduce for peer in peers]
        for peer in peers:
            peer.reducer.reduce = fail
        await trainer.step(*batch(4), settle=False)
        with pytest.raises(StepLostError, match="no sum today"):
            await trainer.forward(batch(4)[0])
        for peer, each in zip(peers, reduce, strict=True):
            assert (peer.backend.steps, peer.split.steps.kept_bytes) == (0, 0)
            peer.reducer.reduce = each
        await step_both(trainer, whole, same)


@pytest.mark.parametrize(("codec", "share"), [("float16", 2**-10), ("blockwise-int8", 1 / 127)])
async def test_sums_that_travel_in_a_codec_are_as_near_as_it_is(
    open_swarm, autojump_clock, codec, share
):
    async with open_swarm(
        hosting={"layer": "linear", "optimizer": "sgd"}, splitting={"codec": codec}
    ) as swarm:
        peers = await swarm.add(3)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        before = [each.clone() for each in whole.parameters]
        x, gradient = batch(9)
        await trainer.step(x, gradient)
        whole.backward([x], [gradient])
        for mine, exact, old in zip(peers[0].weights, whole.parameters, before, strict=True):
            # Each contribution and the sum are off by half a step of the largest value at most.
            assert (mine - exact).abs().max() > 0
            assert (mine - exact).abs().max() <= 4 * share * (exact - old).abs().max()
        for peer in peers[1:]:  # to the last bit
            assert all(map(torch.equal, peer.weights, peers[0].weights))


async def test_peers_that_were_not_found_for_a_step_do_not_outvote_the_one_that_took_it(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        await swarm.add(3)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        book = trainer.caller._parts._judged.book
        candidates = book.candidates

        async def first(uid):
            return (await candidates(uid))[:1]

        book.candidates = first
        by = await step_both(trainer, whole, same)
        assert len(by) == 1
        book.candidates = candidates
        for _ in range(2):
            await step_both(trainer, whole, same)


async def test_when_the_only_peer_that_stepped_dies_none_of_the_others_steps(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        await swarm.add(3)
        first, *others = swarm.in_order()
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        commit = trainer.caller._stepping._commit

        async def half(work, ready):
            await commit(work, ready[:1])
            raise StepLostError("the trainer is lost")

        trainer.caller._stepping._commit = half
        with pytest.raises(StepLostError):
            await trainer.step(*batch(6))
        first.crash()
        await trio.sleep(20)
        for peer in others:
            assert peer.backend.steps == 0
            assert any(isinstance(each, SplitStepDropped) for each in peer.events)
        trainer.caller._stepping._commit = commit
        await step_both(trainer, whole, same)
        for peer in others:
            same(peer.weights, whole.parameters)


async def test_a_peer_that_missed_a_step_catches_up_before_it_serves_again(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        await swarm.add(3)
        *others, last = swarm.in_order()
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        await step_both(trainer, whole, same)
        commit = last.split.steps.commit

        async def lost(uid, key):
            last.split.steps.abort(uid, key)
            raise StepLostError("lost")

        last.split.steps.commit = lost
        await step_both(trainer, whole, same)
        last.split.steps.commit = commit
        assert [peer.backend.steps for peer in (*others, last)] == [2, 2, 1]
        by = await step_both(trainer, whole, same)
        assert last.peer_id not in {peer_id for peer_id, _ in by}
        for _ in range(4):
            await trio.sleep(3)
            by = await step_both(trainer, whole, same)
        assert last.peer_id in {peer_id for peer_id, _ in by}
        for peer in (*others, last):
            same(peer.weights, whole.parameters)
        kinds = [type(each) for each in last.events]
        assert kinds.index(FellBehind) < kinds.index(CaughtUp)


async def test_a_peer_that_comes_late_has_the_weights_before_it_takes_part(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        await swarm.add(2)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        for _ in range(3):
            await step_both(trainer, whole, same)
        (late,) = await swarm.add()
        for _ in range(4):
            await trio.sleep(3)
            by = await step_both(trainer, whole, same)
        assert late.peer_id in {peer_id for peer_id, _ in by}
        same(late.weights, whole.parameters)
        assert late.backend.steps == whole.steps


async def test_a_late_peer_catches_up_with_a_swarm_that_never_rests(
    open_swarm, same, autojump_clock
):
    async with open_swarm(delay=0.03) as swarm:
        await swarm.add(2)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        await step_both(trainer, whole, same)
        (late,) = await swarm.add()
        with trio.fail_after(60):
            while True:
                by = await step_both(trainer, whole, same)
                if late.peer_id in {peer_id for peer_id, _ in by}:
                    break
        same(late.weights, whole.parameters)


async def test_a_peer_with_weights_of_its_own_is_left_out_and_takes_over_those_of_most(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        *others, odd = await swarm.add(3)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        await step_both(trainer, whole, same)
        for each in odd.backend.parameters:  # it goes astray, and is ahead
            each.data.add_(1.0)
        x, gradient = batch(2)
        await odd.experts.backward(
            odd.experts.uids[0],
            [x],
            [gradient],
            caller=odd.peer_id,
            call_id=bytes(16),
            deadline=1e9,
        )
        by = await step_both(trainer, whole, same)
        assert odd.peer_id not in {peer_id for peer_id, _ in by}
        await trio.sleep(10)
        by = await step_both(trainer, whole, same)
        assert odd.peer_id in {peer_id for peer_id, _ in by}
        for peer in (*others, odd):
            same(peer.weights, whole.parameters)


async def test_two_trainers_at_once_step_one_after_the_other_everywhere(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        peers = await swarm.add(3)
        trainers = [await swarm.trainer(number) for number in range(2)]
        batches = {each.host.peer_id: [batch(5) for _ in range(6)] for each in trainers}

        async def train(trainer):
            for x, gradient in batches[trainer.host.peer_id]:
                await trainer.step(x, gradient)

        async with trio.open_nursery() as nursery:
            for trainer in trainers:
                nursery.start_soon(train, trainer)
        await trio.sleep(1)
        whole = swarm.unsplit()
        taken = [each for each in peers[0].events if isinstance(each, SplitStepTaken)]
        assert len(taken) == 12
        for each in taken:
            x, gradient = batches[each.caller].pop(0)
            whole.backward([x], [gradient])
        for peer in peers:
            same(peer.weights, whole.parameters)
            assert peer.backend.steps == 12
            assert peer.split.steps.kept_bytes == 0


async def test_rows_are_shared_out_as_fast_as_peers_have_shown_to_be(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        for seconds in (0.001, 0.001, 0.003):  # for each row
            computed = []

            async def compute(work, seconds=seconds, computed=computed):
                computed.clear()
                answer = work()
                await trio.sleep(seconds * sum(computed))
                return answer

            (peer,) = await swarm.add(compute=compute)
            peer.backend.module.register_forward_pre_hook(
                lambda _module, inputs, computed=computed: computed.append(len(inputs[0]))
            )
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        for _ in range(6):
            by = await step_both(trainer, whole, same, 70)
        rows = {peer_id: len(part) for peer_id, part in by}
        shares = [rows[peer.peer_id] for peer in swarm.peers]
        assert shares == [pytest.approx(each, abs=2) for each in (30, 30, 10)]


async def test_rows_beyond_what_a_peer_takes_at_once_go_in_several_parts(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        peers = await swarm.add(2, max_batch_rows=4)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        for _ in range(2):
            by = await step_both(trainer, whole, same, 21)
        assert max(len(part) for _, part in by) <= 4
        for peer in peers:
            same(peer.weights, whole.parameters)


async def test_a_step_counts_once_however_often_its_calls_are_repeated(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        await swarm.add(2)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        ask = trainer.caller._stepping._peers._client.ask

        async def thrice(peer_id, request, *args, **options):
            for _ in range(2):
                if request.operation in {"join", "backward", "commit"}:
                    await ask(peer_id, request, *args, **options)
            return await ask(peer_id, request, *args, **options)

        trainer.caller._stepping._peers._client.ask = thrice
        for _ in range(3):
            await step_both(trainer, whole, same)
        for peer in swarm.peers:
            same(peer.weights, whole.parameters)
            assert (peer.backend.steps, peer.backend.rows) == (3, 18)


async def test_a_step_whose_caller_falls_silent_is_given_up_and_the_next_one_has_its_turn(
    open_swarm, same, autojump_clock
):
    async with open_swarm() as swarm:
        (peer,) = await swarm.add()
        silent, trainer = await swarm.trainer(1), await swarm.trainer(2)
        whole = swarm.unsplit()
        steps = peer.split.steps
        turn = await steps.join(peer.experts.uids[0], bytes(16), silent.host.peer_id)
        assert steps.kept_bytes == turn.size > 0
        began = trio.current_time()
        await step_both(trainer, whole, same)
        assert 5 <= trio.current_time() - began < 6  # its lease
        assert steps.kept_bytes == 0


async def test_what_does_not_fit_is_refused_before_it_is_sent(open_swarm, autojump_clock):
    async with open_swarm() as swarm:
        (peer,) = await swarm.add()
        trainer = await swarm.trainer()
        with pytest.raises(SchemaError, match="float32 of shape"):
            await trainer.forward(torch.randn(2, 9))
        with pytest.raises(SchemaError, match="no rows"):
            await trainer.forward(torch.randn(0, 8))
        answer = await trainer.forward(torch.randn(2, 8))
        with pytest.raises(SchemaError, match="gradient"):
            await trainer.caller.backward(
                "layer.0", [torch.randn(2, 8)], [torch.randn(2, 7)], POLICY, answer.by
            )
        assert peer.split.steps.kept_bytes == 0  # the step was given up at once
        peer.crash()
        with pytest.raises(HostLostError):
            await trainer.forward(torch.randn(2, 8), POLICY)


async def test_a_swarm_without_room_for_gradients_refuses_the_step(open_swarm, autojump_clock):
    async with open_swarm(splitting={"max_kept_bytes": 100}) as swarm:
        await swarm.add(2)
        trainer = await swarm.trainer()
        with pytest.raises(Exception, match=r"splitting\.max_kept_bytes"):
            await trainer.step(*batch(4))


async def test_a_peer_that_is_behind_serves_no_split_calls(open_swarm, autojump_clock):
    async with open_swarm() as swarm:
        (peer,) = await swarm.add()
        trainer = await swarm.trainer()
        peer.split.steps.behind.add(peer.experts.uids[0])
        with pytest.raises(BehindError):
            await trainer.forward(torch.randn(2, 8))
        with pytest.raises(BehindError):
            await trainer.caller.backward(
                "layer.0", [torch.randn(2, 8)], [torch.randn(2, 8)], POLICY, ()
            )
