"""The studio: one page on which a lesion is drawn and samples follow it."""
