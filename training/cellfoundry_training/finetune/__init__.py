"""Fine-tuning a pretrained model on an obs column: small-scale, one process, one device."""
