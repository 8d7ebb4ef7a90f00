"""``python -m sgquant_optuna`` is ``sgquant``."""

from sgquant_optuna.cli.app import run

if __name__ == "__main__":
    run()
