"""States of experts move between hosts by their content; replicas and hand-over build on it."""
