"""The paper's five steps."""

import numpy as np
import optuna

from tests.sampler.toy_study import new_sampler, objective


def test_the_paper_mode_ranks_feasible_candidates_by_memory():
    study = optuna.create_study(sampler=new_sampler(acquisition="paper"))
    study.optimize(objective, n_trials=40)
    later = study.trials[20:]
    predicted = [t.user_attrs["predicted"] for t in later]
    assert all(set(p) == {"constraint 0"} for p in predicted)
    assert np.mean([p["constraint 0"] <= 0 for p in predicted]) > 0.8
