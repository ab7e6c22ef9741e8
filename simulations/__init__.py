"""The home of scenarios that run the real node code under virtual time; none is here yet."""
