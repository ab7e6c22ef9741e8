"""What is the matter with this node, in plain words: facts are gathered, then judged."""
