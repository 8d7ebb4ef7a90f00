"""``python -m sgquant_optuna`` is ``sgquant``."""

from sgquant_optuna.cli.app import main

if __name__ == "__main__":
    main()
