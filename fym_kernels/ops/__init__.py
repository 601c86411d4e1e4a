"""The public side of each op: its signature, and the hand-over to the backend that was chosen."""
