"""What scripts for BytePS and Horovod use: sums of tensors, the optimizer that averages gradients, and broadcasts.

It may import client and torch. Begin with optimizer.py; gradient_averages.py does its work.
"""
