"""Stands in for a file that the source archive lacks: runs a function in several processes (gloo, CPU)."""

import os
import socket

import torch.distributed as dist
import torch.multiprocessing as mp


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _run_rank(rank, world_size, port, function, args):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    function(rank, *args)
    dist.destroy_process_group()


def run_distributed(world_size: int):
    def decorate(function):
        def run(*args):
            mp.spawn(_run_rank, args=(world_size, _free_port(), function, args), nprocs=world_size)

        return run

    return decorate
