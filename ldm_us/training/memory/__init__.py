"""Whether a training fits the memory of its device, before its first step."""
