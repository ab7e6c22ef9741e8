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


def test_a_table_too_wide_for_the_terminal_becomes_paragraphs(capsys, monkeypatch):
    rows = [("x" * 52, "/ip4/1.2.3.4/tcp/1"), ("y" * 70, None)]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")  # 80 columns
    print_table("2 peers", ("peer id", "address"), rows)
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "2 peers",
        "",
        f"peer id  {'x' * 52}",
        "address  /ip4/1.2.3.4/tcp/1",
        "",
        f"peer id  {'y' * 70}",
        "address  -",
        "",
    ]
    print_table("1 peer", ("peer id", "address"), rows[:1])
    assert f"{'x' * 52}   /ip4/1.2.3.4/tcp/1" in capsys.readouterr().out


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
