"""What goes to other tools."""

TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Names of accelerate's trackers. Each is also the name of the package that the tracker needs."""
