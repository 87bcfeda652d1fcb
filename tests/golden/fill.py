"""Deterministic weights and inputs, a function of the tensor's name and shape alone."""

import hashlib
import math

import numpy as np

BLOCK = 1 << 16  # numbers made at a time: they stay in the cache, and sd15 has a billion of them


def uniform(name, shape):
    """Unit-variance uniform float32 noise, from the stable raw stream of PCG64 seeded by sha256(name)."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    stream = np.random.PCG64(seed)
    u = np.empty(math.prod(shape), np.float32)
    for start in range(0, u.size, BLOCK):
        block = u[start : start + BLOCK]
        block[:] = stream.random_raw(block.size) >> np.uint64(40)
        block *= np.float32(2.0**-23)
        block -= np.float32(1.0)
        block *= np.float32(math.sqrt(3.0))
    return u.reshape(shape)


def weight(key, shape):
    """The tensor of a checkpoint whose ORIGINAL name is `key`."""
    shape = tuple(shape)
    if key.endswith("position_ids"):
        return np.arange(shape[-1], dtype=np.int64).reshape(shape)
    x = uniform(key, shape)
    if "embedding.weight" in key:  # token and position embeddings
        return x
    if len(shape) >= 2:  # linear kernels keep the scale; convolutions shrink it tenfold,
        gain = 0.1 if len(shape) == 4 else 1.0  # so that the eps of each GroupNorm shows in the output
        x *= np.float32(gain / math.sqrt(math.prod(shape[1:])))
        return x
    if key.endswith("weight"):  # normalisation gains
        return np.float32(1.0) + np.float32(0.1) * x
    return np.float32(0.02) * x  # biases
