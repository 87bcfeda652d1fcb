"""A breast phantom and a fast B-mode simulator: ultrasound-like images with exact lesion masks, made on the spot."""
