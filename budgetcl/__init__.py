"""budgetcl: continual learning under an enforced compute budget.

A stream reveals data in time steps; at each step a learner may spend so many FLOPs and no more; its predictions, made
before the labels, go into one log; every number comes from that log and from the ledger.
"""

__version__ = "0.1.0"
