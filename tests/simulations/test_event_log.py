import hashlib
import io
import json
import math

import pytest
import trio

from simulations.event_log import EventLog


async def test_each_fact_is_a_line_with_its_virtual_time(autojump_clock):
    file = io.BytesIO()
    log = EventLog(file)
    await trio.sleep(1.25)
    log.record("node-joined", node="n1", took=0.5)
    line = json.loads(file.getvalue())
    assert line == {"t": 1.25, "kind": "node-joined", "node": "n1", "took": 0.5}


async def test_the_digest_is_that_of_the_lines_with_or_without_a_file(autojump_clock):
    file = io.BytesIO()
    logs = [EventLog(file), EventLog()]
    for log in logs:
        log.record("one")
        log.record("two", names=["ä", "b"])
    assert [each.digest for each in logs] == [hashlib.sha256(file.getvalue()).hexdigest()] * 2
    assert logs[1].lines == 2
    assert logs[1].count == {"one": 1, "two": 1}


async def test_an_object_is_no_fact_as_its_text_could_hold_an_address(autojump_clock):
    with pytest.raises(TypeError):
        EventLog().record("odd", thing=object())


async def test_a_number_that_is_not_finite_is_null_and_the_line_still_json(autojump_clock):
    file = io.BytesIO()
    EventLog(file).record("measured", hops=math.nan, of=[1.0, {"worst": math.inf}])
    text = file.getvalue().decode()
    assert text == '{"t":0.0,"kind":"measured","hops":null,"of":[1.0,{"worst":null}]}\n'
