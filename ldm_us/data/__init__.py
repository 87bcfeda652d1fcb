"""Data: records, readers, splits and the audit."""
