"""How much of this node a subnet, a peer, a protocol, and all of them together, may use.

Every use is charged to all the scopes it belongs to, or it is refused, before anything is decoded
or allocated for it:

```
node
 ├─ network, address (subnets) ─┐
 ├─ peer ───────────────────────┴─ connection ── stream ── its window's bytes
 └─ protocol ── protocol with one peer ────────────┘
```

It is bookkeeping without a clock or a socket. Whoever holds an account gives it back by closing
it, which is what leaving its block does, so nothing stays charged.
"""

from p2pnode.host.budgets.accounts import ConnectionAccount, StreamAccount
from p2pnode.host.budgets.ledger import BudgetReport, Budgets, ScopeUse, Use
from p2pnode.host.budgets.refusals import ResourceRefused
from p2pnode.host.budgets.scopes import CONNECTION_RESOURCES, Resource

__all__ = [
    "CONNECTION_RESOURCES",
    "BudgetReport",
    "Budgets",
    "ConnectionAccount",
    "Resource",
    "ResourceRefused",
    "ScopeUse",
    "StreamAccount",
    "Use",
]
