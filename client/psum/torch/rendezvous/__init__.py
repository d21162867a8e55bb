"""How a group of torch's processes becomes a job of psum: names of ranks, the job's name, and the aggregators.

It may import psum.client and psum.runtime. Begin with joining.py. names.py and plan.py decide, without I/O; exchange.py
carries what ranks tell each other through torch's store; own_aggregator.py is an aggregator that this process starts.
"""

from psum.torch.rendezvous.initialization import install
from psum.torch.rendezvous.joining import connect
from psum.torch.rendezvous.names import missing_from_torch

__all__ = ["connect", "install", "missing_from_torch"]
