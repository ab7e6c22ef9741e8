"""The control socket: how the command line talks to the running daemon of a data directory.

A client connects to the Unix socket, sends one request as a line of JSON, and reads one reply as
a line of JSON; one that hangs up before takes its command back. Who may open the socket is decided
by the file system: the data directory belongs to its user alone.
"""
