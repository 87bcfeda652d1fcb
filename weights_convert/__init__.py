"""Weights of Stable Diffusion 1.5 and ControlNet, from the formats in use into the networks of ldm_us.

rules (names, as data) -> detect (which names a file uses) -> convert (plan and check) -> import_command (files);
convert, tensor_numbers, drift (in the order of blocks) -> audit -> audit_text, audit_page -> audit_command.
"""
