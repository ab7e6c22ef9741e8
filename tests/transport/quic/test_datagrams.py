import errno
import random
import select
import socket
import sys

import pytest

from p2pnode.transport.quic.datagrams import MAX_JOINED, DatagramSocket


class Refusing:
    """A socket whose device cuts nothing up."""

    def __init__(self, real, number):
        self._real = real
        self._number = number
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self._real, name)

    def sendmsg(self, *_arguments):
        self.calls += 1
        raise OSError(self._number, "refused")


class Full:
    """A socket that takes only so many more datagrams, one at a time."""

    def __init__(self, room):
        self.room = room
        self.sent = []

    def setsockopt(self, *_arguments):
        raise OSError(errno.ENOPROTOOPT, "unknown")

    def sendmsg(self, pieces, *_arguments):
        if len(pieces) > self.room:
            raise BlockingIOError
        self.room -= len(pieces)
        self.sent += pieces

    def sendto(self, data, _address):
        if not self.room:
            raise BlockingIOError
        self.room -= 1
        self.sent.append(data)


def bound():
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    opened.bind(("127.0.0.1", 0))
    return opened


@pytest.fixture
def pair():
    with bound() as one, bound() as other:
        yield one, other


def drain(datagrams, opened, count):
    """Receive so many datagrams; returns them, and in how many calls they came."""
    found, calls = [], 0
    while len(found) < count:
        assert select.select([opened], [], [], 10)[0], f"{len(found)} of {count} came"
        pieces, _ = datagrams.receive()
        found += pieces
        calls += 1
    with pytest.raises(BlockingIOError):
        datagrams.receive()
    return found, calls


@pytest.mark.parametrize("seed", range(5))
def test_datagrams_of_all_sizes_arrive_as_they_were_sent(pair, seed):
    one, other = pair
    rng = random.Random(seed)
    sizes = [rng.choice([0, 1, 300, 1232, 1232, 1232, 1232, 9000]) for _ in range(90)]
    sent = [rng.randbytes(size) for size in sizes]
    sender, receiver = DatagramSocket(one), DatagramSocket(other)
    address = other.getsockname()
    assert sender.send([(data, address) for data in sent]) == len(sent)
    received, _ = drain(receiver, other, len(sent))
    assert received == sent


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux joins datagrams")
def test_datagrams_of_one_size_go_and_come_in_one_call(pair):
    one, other = pair
    sender, receiver = DatagramSocket(one), DatagramSocket(other)
    sent = [bytes([number]) * 1232 for number in range(20)] + [b"the end"]
    address = other.getsockname()
    assert sender.send([(data, address) for data in sent]) == len(sent)
    if not sender.joins:
        pytest.skip("this kernel joins no datagrams")
    received, calls = drain(receiver, other, len(sent))
    assert received == sent
    assert calls < len(sent) / 2


def test_datagrams_to_several_addresses_go_each_to_its_own(pair):
    one, other = pair
    with bound() as third:
        receivers = [DatagramSocket(each) for each in (other, third)]
        addresses = [each.getsockname() for each in (other, third)]
        sent = [(b"%d" % number * 100, addresses[number // 3 % 2]) for number in range(12)]
        assert DatagramSocket(one).send(sent) == 12
        for receiver, opened, address in zip(receivers, (other, third), addresses, strict=True):
            mine = [data for data, where in sent if where == address]
            assert drain(receiver, opened, len(mine))[0] == mine


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere none are joined")
def test_where_datagrams_cannot_be_joined_they_go_one_by_one_from_then_on(pair):
    one, other = pair
    refusing = Refusing(one, errno.EIO)
    sender, receiver = DatagramSocket(refusing), DatagramSocket(other)
    sent = [(bytes([number]) * 1232, other.getsockname()) for number in range(8)]
    assert sender.send(sent) == 8
    assert sender.send(sent) == 8
    assert refusing.calls == 1
    assert drain(receiver, other, 16)[0] == [data for data, _ in sent] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere none are joined")
def test_what_a_firewall_swallows_is_lost_and_joining_goes_on(pair):
    one, other = pair
    refusing = Refusing(one, errno.EPERM)
    sender = DatagramSocket(refusing)
    sent = [(bytes(1232), other.getsockname())] * 8
    assert sender.send(sent) == 8
    assert sender.joins
    with pytest.raises(BlockingIOError):
        DatagramSocket(other).receive()


@pytest.mark.parametrize("room", [0, 1, MAX_JOINED, MAX_JOINED + 5])
def test_what_a_full_socket_does_not_take_is_left_to_the_caller(room):
    full = Full(room)
    sent = [(b"%3d" % number, ("127.0.0.1", 1)) for number in range(3 * MAX_JOINED)]
    taken = DatagramSocket(full).send(sent)
    assert taken <= room
    assert full.sent == [data for data, _ in sent[:taken]]
