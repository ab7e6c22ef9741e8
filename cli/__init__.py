"""The command line: parse, call p2pnode, print."""
