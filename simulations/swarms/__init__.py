"""Layer swarms that train in rounds: participants with the real node's code, and those who lie."""
