"""LoRAs and textual inversions of other programs: their names, their kinds, there and back."""
