"""A reader study: experts tell real images from generated ones, blinded, and their answers are scored."""
