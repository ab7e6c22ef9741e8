"""What an AutoNAT server answers to requests of every kind, over real streams."""

from contextlib import asynccontextmanager

import pytest
import trio

from p2pnode.config import ReachabilitySettings
from p2pnode.errors import DialError, NoRouteError, ResourceLimitError, StreamResetError
from p2pnode.host import PeerMisbehaved
from p2pnode.protocols.autonat.messages import (
    DIAL_BACK,
    DIAL_REQUEST,
    PROTOCOL_V1,
    DialData,
    DialDataRequest,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
    V1Status,
    decode_v1_answer,
    decode_v2,
    encode_v1_request,
    encode_v2,
)
from p2pnode.wire import varint
from p2pnode.wire.addresses import parse_address

LIMIT = 8192


@pytest.fixture
async def pair(full_world):
    """One who asks, with no service of its own, and a server; both public and connected."""
    (server,) = await full_world.add_servers(1)
    host = await full_world.hosts.add_host()
    await host.connect(server.host.peer_id, server.host.addresses)
    return host, server


@asynccontextmanager
async def opened(pair, protocol):
    host, server = pair
    stream = await host.open_stream(server.host.peer_id, [protocol])
    yield stream
    await stream.aclose()


async def ask_v1(pair, request):
    async with opened(pair, PROTOCOL_V1) as stream:
        await stream.send_all(varint.prefixed(request))
        return decode_v1_answer(await stream.receive_prefixed(LIMIT))


async def say(stream, message):
    await stream.send_all(varint.prefixed(encode_v2(message)))


async def hear(stream):
    return decode_v2(await stream.receive_prefixed(LIMIT), limit=9)


async def ask_v2(pair, *addresses, nonce=7):
    async with opened(pair, DIAL_REQUEST) as stream:
        await say(stream, DialRequest(addresses=addresses, nonce=nonce))
        return await hear(stream)


def fail_dials(monkeypatch, server, error):
    @asynccontextmanager
    async def dial_anew(*_, **__):
        raise error
        yield

    monkeypatch.setattr(server.host, "dial_anew", dial_anew)


async def test_a_requester_is_reached_by_the_first_version_and_told_where(autojump_clock, pair):
    host, _ = pair
    answer = await ask_v1(pair, encode_v1_request(host.peer_id, tuple(host.addresses)))
    assert (answer.status, answer.address) == (V1Status.OK, host.addresses[0])


async def test_nobody_can_be_asked_for_but_oneself(autojump_clock, pair):
    host, server = pair
    answer = await ask_v1(pair, encode_v1_request(server.host.peer_id, tuple(host.addresses)))
    assert answer.status is V1Status.E_BAD_REQUEST


async def test_what_is_no_request_of_the_first_version_is_a_bad_one(autojump_clock, pair):
    assert (await ask_v1(pair, b"\x08\x01")).status is V1Status.E_BAD_REQUEST


async def test_an_address_elsewhere_is_not_dialled_by_the_first_version(autojump_clock, pair):
    host, _ = pair
    answer = await ask_v1(
        pair, encode_v1_request(host.peer_id, (parse_address("/ip4/8.8.8.8/tcp/1"),))
    )
    assert answer.status is V1Status.E_DIAL_ERROR  # only where it was seen, a port for dialling
    assert "8.8.8.8" not in answer.text


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (DialError("refused"), (V1Status.E_DIAL_ERROR, ResponseStatus.OK)),
        (NoRouteError("no net"), (V1Status.E_DIAL_REFUSED, ResponseStatus.E_DIAL_REFUSED)),
        (ResourceLimitError("full"), (V1Status.E_DIAL_REFUSED, ResponseStatus.E_DIAL_REFUSED)),
    ],
    ids=["not there", "no way", "no room"],
)
async def test_only_what_is_the_requesters_trouble_counts_against_it(
    autojump_clock, pair, monkeypatch, error, answers
):
    host, server = pair
    fail_dials(monkeypatch, server, error)
    answer = await ask_v1(pair, encode_v1_request(host.peer_id, tuple(host.addresses)))
    response = await ask_v2(pair, *host.addresses)
    assert (answer.status, response.status) == answers
    assert (response.dial_status is DialStatus.E_DIAL_ERROR) is (answers[1] is ResponseStatus.OK)


async def test_the_nonce_is_handed_over_where_the_second_version_dials(autojump_clock, pair):
    host, _ = pair
    nonces = []

    async def take(stream):
        nonces.append(await stream.receive_prefixed(64))
        await stream.send_all(b"\x00")

    host.set_handler(DIAL_BACK, take)
    assert await ask_v2(pair, *host.addresses) == DialResponse(
        status=ResponseStatus.OK, index=0, dial_status=DialStatus.OK
    )
    assert nonces == [b"\x09\x07" + bytes(7)]


async def test_reaching_a_requester_that_takes_no_nonce_is_an_error_of_its_own(
    autojump_clock, pair
):
    host, _ = pair
    response = await ask_v2(pair, *host.addresses)
    assert response.dial_status is DialStatus.E_DIAL_BACK_ERROR


async def test_private_addresses_are_refused_and_public_ones_behind_them_are_not(
    autojump_clock, pair
):
    host, _ = pair
    home = parse_address("/ip4/192.168.1.1/tcp/1")
    assert (await ask_v2(pair, home)).status is ResponseStatus.E_DIAL_REFUSED
    assert (await ask_v2(pair, home, *host.addresses)).index == 1


async def test_who_asks_too_often_is_rejected(autojump_clock, pair):
    host, _ = pair
    burst = ReachabilitySettings().request_burst_per_peer
    responses = [await ask_v2(pair, *host.addresses) for _ in range(burst + 1)]
    assert [each.status for each in responses] == [ResponseStatus.OK] * burst + [
        ResponseStatus.E_REQUEST_REJECTED
    ]
    answer = await ask_v1(pair, encode_v1_request(host.peer_id, tuple(host.addresses)))
    assert (answer.status, answer.text) == (V1Status.E_DIAL_REFUSED, "requests come too fast")


async def test_a_dial_to_a_third_place_is_made_only_after_it_is_paid_for(
    autojump_clock, pair, monkeypatch
):
    _, server = pair
    dialled = []

    @asynccontextmanager
    async def dial_anew(_peer_id, address, **_):
        dialled.append(address)
        raise DialError("nobody")
        yield

    monkeypatch.setattr(server.host, "dial_anew", dial_anew)
    victim = parse_address("/ip4/8.8.8.8/tcp/1")
    async with opened(pair, DIAL_REQUEST) as stream:
        await say(stream, DialRequest(addresses=(victim,), nonce=1))
        wanted = await hear(stream)
        assert isinstance(wanted, DialDataRequest)
        assert 30_000 <= wanted.size <= 100_000
        for _ in range(wanted.size // 4096):
            await say(stream, DialData(size=4096))
        await trio.sleep(1)
        assert dialled == []
        await say(stream, DialData(size=4096))
        assert (await hear(stream)).dial_status is DialStatus.E_DIAL_ERROR
    assert dialled == [victim]


async def test_who_does_not_pay_is_let_go_and_may_ask_again(autojump_clock, pair):
    host, _ = pair
    async with opened(pair, DIAL_REQUEST) as stream:
        victim = parse_address("/ip4/8.8.8.8/tcp/1")
        await say(stream, DialRequest(addresses=(victim,), nonce=1))
        await hear(stream)
        with pytest.raises(StreamResetError):
            await hear(stream)
    assert (await ask_v2(pair, *host.addresses)).status is ResponseStatus.OK


async def test_who_begins_with_something_else_breaks_the_rules(autojump_clock, pair):
    _, server = pair
    with server.host.events.subscribe(PeerMisbehaved) as misbehaved:
        async with opened(pair, DIAL_REQUEST) as stream:
            await say(stream, DialData(size=1))
            with pytest.raises(StreamResetError):
                await hear(stream)
        assert "does not begin with a request" in (await misbehaved.get()).reason
