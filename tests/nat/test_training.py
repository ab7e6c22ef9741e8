"""The main job behind NATs: hosts and trainer in homes of their own, and nobody forwards a port."""

import contextlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from cli.demo import plan
from p2pnode.testing.nat_lab import Lab

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

PUBLIC_NODES = 4  # so many must agree on an address; relays that carry too little for training
DELAY = 0.0125  # seconds from each machine to the middle of the internet: 50 ms there and back
TRAINER = """
import json, sys
import torch
from cli.demo import plan
from cli.demo.data import load
from cli.demo.training import build_classifier, evaluate, train
import p2pnode
from p2pnode.wire.keys import PrivateKey

torch.set_num_threads(1)
key, data = PrivateKey.generate(), load()
addresses = json.loads(sys.argv[1])
with p2pnode.connect(addresses, run=plan.RUN, key=key) as swarm:
    def build(block):
        return swarm.mixture_of_experts(
            block, grid=plan.GRID, in_features=plan.HIDDEN_DIM, k_best=plan.K_BEST, k_min=1
        )
    model = build_classifier(build, 0)
    skipped = 0
    for step in train(model, data, steps=plan.DEFAULT_STEPS, seed=0):
        skipped += step.loss is None
    print(json.dumps({
        "peer_id": str(key.peer_id),
        "accuracy": evaluate(model, data.test),
        "skipped": skipped,
        "failed_calls": swarm.stats().failed_calls,
    }), flush=True)
    sys.stdin.read(1)  # it stays connected until it is looked at
"""


def test_training_behind_port_restricted_routers_goes_over_punched_holes(
    if_full, tmp_path, ask, eventually
):
    hosting = plan.hosting_settings(0)
    with Lab() as lab, contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:

        def start(machine, name, *arguments, **options):
            return stack.enter_context(machine.daemon(tmp_path / name, *arguments, **options))

        public = []
        for number in range(PUBLIC_NODES):
            machine = lab.host(delay=DELAY)
            known = [f"--bootstrap={each.address}" for each in public[:1]]
            listen = f"/ip4/{machine.ip}/tcp/4001"
            public.append(start(machine, f"public-{number}", *known, listen=listen))
        ways_in = [each.address for each in public]

        def start_host(number):
            machine = lab.router("port-restricted", delay=DELAY).host()
            config = tmp_path / f"host-{number}.toml"
            lines = [f"experts = {json.dumps(plan.experts_of(number))}", "[hosting]"]
            lines += [f"{name} = {json.dumps(value)}" for name, value in hosting.items()]
            config.write_text("\n".join(["[node]", *lines, ""]))
            known = [f"--bootstrap={each}" for each in ways_in]
            return start(machine, f"host-{number}", f"--config={config}", *known)

        hosts = [start_host(number) for number in range(plan.DAEMONS)]
        list(pool.map(lambda host: _wait_reachable(ask, eventually, host), hosts))
        home = lab.router("port-restricted", delay=DELAY).host()
        trainer = home.start(
            [sys.executable, "-c", TRAINER, json.dumps(ways_in)],
            stdin=-1,  # pipes
            stdout=-1,
        )
        outcome = json.loads(trainer.stdout.readline())
        ways = {
            peer["way"]
            for host in hosts
            for peer in ask(host, "peers")
            if peer["peer_id"] == outcome["peer_id"]
        }
        trainer.stdin.close()
        trainer.wait(timeout=30)
    assert outcome["accuracy"] >= plan.REQUIRED_ACCURACY
    assert outcome["skipped"] == 0
    assert ways <= {"direct", "punched"}


def _wait_reachable(ask, eventually, host):
    eventually(lambda: "p2p-circuit" in str(ask(host, "status")["addresses"]))
