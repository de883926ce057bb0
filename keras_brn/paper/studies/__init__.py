"""Small experiments beside the figures of the paper, a program each."""
