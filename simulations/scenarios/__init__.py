"""The scenarios that ship: each module here holds one, as `SCENARIO`."""
