import pytest
import torch

LAYERS = ["linear", "ffn", "transformer"]
OPTIMIZERS = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "adam", "clip_grad_norm": 0.1},
    {"optimizer": "adagrad"},
    {"optimizer": "rmsprop"},
]


@pytest.mark.parametrize("hosting", OPTIMIZERS, ids=lambda each: "-".join(map(str, each.values())))
async def test_a_split_layer_learns_what_the_whole_one_does(
    open_swarm, same, autojump_clock, hosting
):
    async with open_swarm(hosting=hosting) as swarm:
        peers = await swarm.add(3)
        trainer, whole = await swarm.trainer(), swarm.unsplit()
        for rows in (7, 1, 2, 64):
            x, gradient = torch.randn(rows, 8), torch.randn(rows, 8)
            outputs, found, by = await trainer.step(x, gradient)
            same(outputs, whole.forward([x])[0])
            same(found, whole.backward([x], [gradient])[0])
            assert sum(len(rows) for _, rows in by) == rows
            for peer in peers:
                same(peer.weights, whole.parameters)
                assert (peer.backend.steps, peer.backend.rows) == (whole.steps, whole.rows)
        assert len({peer_id for peer_id, _ in by}) == 3
        for peer in peers:
            assert peer.split.steps.kept_bytes == peer.budget.bytes_in_flight == 0
