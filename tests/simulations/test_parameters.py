import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.errors import ParameterError
from simulations.parameters import Parameter, as_text, resolve

RATE = Parameter(0.5, "a share", "%", 0.0, 1.0)
COUNT = Parameter(100, "how many", minimum=1)
KIND = Parameter("light", "which", choices=("light", "full"))
SWITCH = Parameter(default=False, help="whether")
SIZES = Parameter((100, 1000), "several", minimum=1)


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        (RATE, "0.25", 0.25),
        (RATE, 1, 1.0),
        (COUNT, "1_000", 1000),
        (COUNT, 7.0, 7),
        (KIND, "full", "full"),
        (SWITCH, "yes", True),
        (SWITCH, "false", False),
        (SIZES, "10, 20", (10, 20)),
        (SIZES, [10], (10,)),
        (SIZES, 10, (10,)),
    ],
)
def test_a_value_becomes_the_type_of_the_default(parameter, text, value):
    got = parameter.check("it", text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("parameter", "value", "says"),
    [
        (RATE, "2", "it takes a number of %, 0 to 1, not '2'"),
        (RATE, "nan", "0 to 1"),
        (RATE, "much", "not 'much'"),
        (RATE, True, "not True"),
        (COUNT, "0", "a whole number, at least 1"),
        (COUNT, "1.5", "not '1.5'"),
        (COUNT, 1.5, "not 1.5"),
        (COUNT, math.inf, "not inf"),
        (KIND, "ful", "light or full, not 'ful' (did you mean 'full'?)"),
        (KIND, 3, "a text"),
        (SWITCH, "perhaps", "true or false"),
        (SIZES, "", "not ''"),
        (SIZES, [], "such as 1,2,3"),
        (SIZES, "1,x", "not 'x'"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(parameter, value, says):
    with pytest.raises(ParameterError) as caught:
        parameter.check("it", value)
    assert says in str(caught.value)


def test_an_unknown_parameter_is_named_with_one_that_is_spelt_like_it():
    with pytest.raises(ParameterError, match=r"no parameter 'count' .*'counts'"):
        resolve({"counts": COUNT}, {"count": 3}, scenario="mine")


def test_parameters_keep_the_order_in_which_they_are_declared():
    values = resolve({"b": COUNT, "a": RATE}, {"a": "0.1"}, scenario="mine")
    assert list(values.items()) == [("b", 100), ("a", 0.1)]


values = st.one_of(
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers(0, 99), min_size=1).map(tuple),
)


@given(values)
def test_a_value_survives_the_command_line(value):
    assert Parameter(value, "any").check("it", as_text(value)) == value
