"""What comes from other tools and goes to them: plans, trackers, and the hub."""

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Names of accelerate's trackers. Each is also the name of the package that the tracker needs."""
