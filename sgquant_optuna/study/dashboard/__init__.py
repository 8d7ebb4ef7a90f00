"""What the Optuna dashboard shows of a study beyond what Optuna knows."""
