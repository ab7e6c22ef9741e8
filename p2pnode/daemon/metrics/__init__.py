"""What Prometheus reads of a node: counted from its events, and looked at when it asks.

No subsystem knows of it. Names follow Prometheus's conventions: base units, `_total` at counters.
No label is a peer's, an expert's or anything else's that others could make up without end.
"""
