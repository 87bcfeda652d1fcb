"""The report: one HTML file that shows what runs started from, what they learnt and what they make now."""
