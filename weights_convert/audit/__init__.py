"""What a file of weights holds and what changed in it since another: read, said in text, as CSV and on a page."""
