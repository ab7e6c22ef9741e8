"""`simulate`: what it shows while it runs, and what it prints in the end."""
