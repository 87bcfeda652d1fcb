"""Weights of Stable Diffusion 1.5 and ControlNet, between the formats in use and the networks of ldm_us.

rules (names, as data) -> detect (which names a file uses) -> convert (plan and check) -> import_command (files);
the same rules -> export_plan (the other way round) -> export_command (files), with diffusers_folder (configs).
convert, tensor_numbers, drift (in the order of blocks) -> audit -> audit_text, audit_page -> audit_command.
"""
