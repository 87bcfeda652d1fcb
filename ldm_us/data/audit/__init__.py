"""The audit of datasets: findings, near-duplicate families, and both as text."""
