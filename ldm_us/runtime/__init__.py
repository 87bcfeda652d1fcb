"""Runtime: how commands end, what they check, and the processes that share a run."""
