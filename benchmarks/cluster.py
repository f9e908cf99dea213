"""What a second node of a cluster is worth: evaluations per second, and the same plan whoever evaluates.

    python benchmarks/cluster.py [--shared ../shared] [--plans 40] [--out FILE.md]

Plans of ResNet-20 at half of its MACs, chosen at random, are evaluated by one worker on one core without Ray, by a cluster of one
node of one core, and by one of two such nodes, all on this machine, which needs three cores for that: the run itself takes part of
one. Then a search by each delivers the same plan. What a worker does once, its start and what it is sent, is not counted.
"""

from __future__ import annotations



