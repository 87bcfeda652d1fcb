"""One picture at a time, for a program that stays: its commands, its thread, its inside."""
