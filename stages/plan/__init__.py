"""What a training will take, reckoned without training: ``python -m stages.plan``."""
