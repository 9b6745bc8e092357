"""Fine-tuning experts with TRL and PEFT: `eft train` ends in a family file that serves what it made."""
