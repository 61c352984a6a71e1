"""The workers of a run among themselves: how many they are and how they sum tensors; between worker and replica.

Workers of one node sum through memory that they share, which takes a fifth of the time of TensorFlow's collectives over
gRPC. These serve workers of several nodes and GPUs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from fruitcnn import shared_sum
from fruitcnn.recipe import TrainConfig

Add = Callable[[list[tf.Tensor]], list[tf.Tensor]]


class Group(NamedTuple):
    """`add` returns the sums of tensors of one type over the workers, in the graph of a step; all must call it.

    A worker learns from `num_parts` parts of its rows side by side. `open_shares(arrays)` opens memory in which the
    workers divide among them what has the shapes of `arrays`; None where they are on several nodes, or alone.
    """

    strategy: tf.distribute.Strategy
    size: int
    add: Add
    num_parts: int
    open_shares: Callable[[list[np.ndarray]], shared_sum.SharedShares] | None = None


def alone(num_parts: int = 1) -> Group:
    """Return the group of a single worker."""
    return Group(tf.distribute.get_strategy(), 1, list, num_parts)


def open_group(config: TrainConfig, world_size: int, num_threads: int) -> Group:
    """Meet the `world_size` workers that TF_CONFIG names; each has `num_threads` CPU threads. Once per process."""
    num_parts = 1 if config.use_gpu else config.num_parts(config.global_batch_size // world_size, num_threads)
    # Parts of a batch side by side, each operation on few threads, are faster than one after the other on all threads.
    tf.config.threading.set_intra_op_parallelism_threads(max(1, num_threads // num_parts))
    # A second one works on what a convolution leaves idle; more only switch between each other.
    tf.config.threading.set_inter_op_parallelism_threads(max(num_parts, min(2, num_threads)))
    if world_size == 1:
        return alone(num_parts)
    task = json.loads(os.environ["TF_CONFIG"])
    return _meet(task["cluster"]["worker"], task["task"]["index"], num_parts, use_gpu=config.use_gpu)


def _meet(addresses: list[str], rank: int, num_parts: int, *, use_gpu: bool) -> Group:
    size, hosts = len(addresses), {address.rpartition(":")[0] for address in addresses}
    if use_gpu or not shared_sum.IS_POSSIBLE or len(hosts) > 1:
        return Group(tf.distribute.MultiWorkerMirroredStrategy(), size, _all_reduce, num_parts)
    # Nobody listens at these ports, so that another group may have been given one of them, but not all.
    meeting = ",".join(addresses)
    add = _through(shared_sum.SharedSum(meeting, rank, size))
    return Group(
        tf.distribute.get_strategy(), size, add, num_parts, partial(shared_sum.SharedShares, meeting, rank, size)
    )


def _all_reduce(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    # An argument of a graph lies on no device yet, and an all-reduce asks for one.
    placed = [tf.identity(tensor) for tensor in tensors]
    return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, placed))


def _through(memory: shared_sum.SharedSum) -> Add:
    def add(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        summed: Any = tf.numpy_function(memory.add, tensors, [tensor.dtype for tensor in tensors])
        for one, tensor in zip(summed, tensors, strict=True):
            one.set_shape(tensor.shape)
        return list(summed)

    return add
