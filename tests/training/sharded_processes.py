"""What `test_sharded.py` starts by torchrun: the command's own function, with DeepSpeed on CPUs."""

import sys

from accelerate import DistributedType, PartialState

from transformers_owl.training.train import train


# Accelerate counts the processes of DeepSpeed on accelerators alone.
PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_CPU)
train(sys.argv[1], sys.argv[2:])
