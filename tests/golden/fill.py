"""Deterministic weights and inputs, a function of the tensor's name and shape alone."""

import hashlib
import math

import numpy as np


def uniform(name, shape):
    """Unit-variance uniform float32 noise, from the stable raw stream of PCG64 seeded by sha256(name)."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(math.prod(shape))
    raw >>= np.uint64(40)
    u = raw.astype(np.float32)
    u *= np.float32(2.0**-23)  # in place: sd15 has a billion numbers
    u -= np.float32(1.0)
    u *= np.float32(math.sqrt(3.0))
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
