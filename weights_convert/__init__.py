"""Weights of Stable Diffusion 1.5 and ControlNet, between the formats in use and the networks of ldm_us.

sources (files, opened) -> detect (whose names) -> source_config (sizes and schedule, by folder_settings, file_settings)
-> convert (plan and check, by rules and expansion) -> import_command;
the same rules, the other way round -> export_command, with diffusers_folder (configs and tokenizer);
lora_names, lora_kinds, lora_peft -> lora_import, lora_export; embedding.
The folder audit reads and changes nothing: findings -> text, page -> command.
"""
