"""Sets of images that may be compared: which, and whether they are independent and unseen."""
