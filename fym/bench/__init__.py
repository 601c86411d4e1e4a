"""`fym bench`: our kernels against the naive implementation, torch.compile of it, and the machine's limits.

naive.py is what everything is compared with, ours.py the same work on fym_kernels, floor.py the limits;
cases.py puts the three side by side, measure.py times them, targets.py says what must be reached.
"""
