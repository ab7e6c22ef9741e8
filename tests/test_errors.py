from p2pnode import errors


def test_codes_are_unique_and_turn_back_into_their_class():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    coded = [kind for kind in kinds if "code" in vars(kind) and kind.code is not None]
    assert len({kind.code for kind in coded}) == len(coded) > 10
    for kind in coded:
        assert type(errors.from_code(kind.code, "why")) is kind
        assert str(errors.from_code(kind.code, "why")) == "why"


def test_an_unknown_code_is_a_plain_call_error():
    assert type(errors.from_code(999, "why")) is errors.CallError


def test_every_error_has_a_sentence_and_a_side():
    for kind in vars(errors).values():
        ours = isinstance(kind, type) and kind.__module__ == errors.__name__
        if ours and issubclass(kind, Exception) and kind is not errors.P2PNodeError:
            assert kind.__doc__
            assert issubclass(kind, errors.LocalError | errors.RemoteError)


def test_the_first_leaf_is_found_however_deep_it_lies():
    wanted = errors.DialError("no")
    group = ExceptionGroup("", [wanted, errors.DialError("other")])
    assert errors.first_leaf(group) is wanted
    assert errors.first_leaf(ExceptionGroup("", [group, ValueError()])) is wanted


def test_a_refusal_names_the_budget_and_reads_as_its_sentence_alone():
    error = errors.ResourceLimitError("full", errors.Limit.PEER_BYTES)
    assert (str(error), error.limit) == ("full", errors.Limit.PEER_BYTES)
    again = type(error)(*error.args)
    assert (str(again), again.limit) == ("full", errors.Limit.PEER_BYTES)
    assert errors.ResourceLimitError("full").limit is None


def test_only_rates_are_a_matter_of_waiting():
    assert errors.Limit.PEER_STREAM_RATE.is_rate
    assert not errors.Limit.PEER_INBOUND_STREAMS.is_rate
