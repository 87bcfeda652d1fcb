"""Files: models, LoRAs and pictures, written whole or not at all and read with suspicion."""
