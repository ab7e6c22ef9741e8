import subprocess
import sys

import pytest

from cli.output import print_facts, print_table


def test_a_table_shows_names_as_they_are(capsys):
    print_table("2 [red]", ("a", "b"), [("[bold]x[/bold] :smile:", "ffn.[0:4]"), ("[/y]", None)])
    shown = capsys.readouterr().out
    for text in ("2 [red]", "[bold]x[/bold] :smile:", "ffn.[0:4]", "[/y]", "-"):
        assert text in shown


def test_in_a_pipe_a_line_stays_whole(capsys):
    print_facts("Status", {"address": "x" * 2000})
    assert "x" * 2000 in capsys.readouterr().out


@pytest.mark.real
@pytest.mark.parametrize(("call", "stream"), [("print_event", "stdout"), ("print_note", "stderr")])
def test_a_reader_that_has_left_does_not_end_the_daemon(call, stream):
    code = f"from cli.output import {call}; input(); {call}('one'); {call}('two')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: subprocess.PIPE},
    )
    with process:
        getattr(process, stream).close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(20) == 0
