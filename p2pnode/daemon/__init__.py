"""Assembly: the node that opens its parts in order, and its control socket."""
