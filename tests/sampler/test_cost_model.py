"""Cost models: ours by name, and a user's own in a few lines."""

import numpy as np
import optuna
import pytest
from sklearn.ensemble import BaggingRegressor
from sklearn.linear_model import BayesianRidge

from sgquant_optuna.sampler import SGQuantSampler, best_for, sensitivity
from sgquant_optuna.sampler.cost_model import check_cost_model, fit_cost_model
from tests.sampler.toy_study import SPACE, configurations, drop_of, memory_of, run

TWO = np.array([[0.0, 1.0], [1.0, 0.0]])


class Ridge:
    """A regression of scikit-learn that tells its deviation."""

    def fit(self, features, targets, *, counts, seed):
        fitted = Ridge()
        fitted.model = BayesianRidge().fit(features, targets, sample_weight=counts)
        return fitted

    def predict(self, features):
        return self.model.predict(features, return_std=True)


class Bagged:
    """Any regressors of scikit-learn, whose bag tells the deviation and the joint draws."""

    def fit(self, features, targets, *, counts, seed):
        fitted = Bagged()
        fitted.bag = BaggingRegressor(n_estimators=8, random_state=seed).fit(features, targets)
        return fitted

    def predict(self, features):
        members = self.members(features)
        return members.mean(axis=0), members.std(axis=0)

    def sample(self, features, rng, count):
        return self.members(features)[rng.integers(8, size=count)]

    def members(self, features):
        return np.stack([tree.predict(features) for tree in self.bag.estimators_])


class Constant:
    """Predicts the mean, with what it is told to."""

    def __init__(self, **answer):
        self.answer = answer

    def fit(self, features, targets, *, counts, seed):
        return Constant(mean=targets.mean(), **self.answer)

    def predict(self, features):
        ones = np.ones(len(features))
        deviation = self.answer.get("deviation", 1.0)
        return self.answer["mean"] * ones, deviation * self.answer.get("ones", ones)


@pytest.mark.parametrize("cost_model", ["gaussian_process", "boosted", Ridge()])
def test_every_cost_model_finds_less_memory_than_uniform_widths(cost_model):
    study = run(30, cost_model=cost_model)
    assert len(set(configurations(study))) == 30
    best = min(memory_of(t.params) for t in study.trials if drop_of(t.params) <= 1.0)
    assert best < 6 * 8  # 4 bits everywhere cost 30 / 16 points, above the limit of 1
    assert "constraint 0 deviation" in study.trials[-1].user_attrs["predicted"]


def test_two_samplers_with_the_same_model_and_seed_choose_alike():
    first, second = (run(15, cost_model=Bagged()) for _ in range(2))
    assert configurations(first) == configurations(second)


@pytest.mark.parametrize("cost_model", ["gaussian_process", Ridge()])
def test_answers_and_explanations_can_use_another_model(study, cost_model):
    answer = best_for(study, known_objective=memory_of, max_drop=2.0, cost_model=cost_model)
    assert answer.drop <= 2.0
    entries = sensitivity(study, "constraint 0", cost_model=cost_model)
    assert len(entries) == len(SPACE)


def test_a_model_without_joint_draws_is_drawn_from_independently():
    ones = np.ones(2)
    model = fit_cost_model(
        Constant(deviation=2.0), TWO, np.array([3.0, 5.0]), ones, seed=0, ordered=ones > 0
    )
    drawn = model.sample(TWO, np.random.default_rng(0), 4000)
    np.testing.assert_allclose(drawn.mean(axis=0), 4.0, atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), 2.0, atol=0.1)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05


def test_a_certain_model_divides_by_no_zero():
    ones = np.ones(2)
    model = fit_cost_model(Constant(deviation=0.0), TWO, ones, ones, seed=0, ordered=ones > 0)
    assert np.all(model.predict(TWO).deviation > 0)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("forest", ValueError, "expected one of 'blend', 'gaussian_process', 'boosted', got 'for"),
        (None, TypeError, "a name or an object with a method fit"),
        (BayesianRidge(), TypeError, "a name or an object with a method fit"),
        (Constant, TypeError, "a name or an object with a method fit"),
        (Constant(ones=np.ones(3)), ValueError, r"predicted deviations .* of shape \(8,\)"),
        (Constant(deviation=np.nan), ValueError, "predicted deviations that are finite"),
    ],
)
def test_a_wrong_cost_model_is_refused_at_the_door(wrong, error, message):
    with pytest.raises(error, match=message):
        SGQuantSampler(SPACE, cost_model=wrong)


def test_what_a_model_fits_must_predict():
    class Fits:
        def fit(self, features, targets, *, counts, seed):
            return targets

    with pytest.raises(TypeError, match=r"expected fit to return an object with .* predict"):
        check_cost_model(Fits())


def test_a_model_that_fails_in_a_round_makes_it_random(caplog):
    class Fragile(Ridge):
        def fit(self, features, targets, *, counts, seed):
            if features.shape[1] > 2:  # not where it is tried
                raise ArithmeticError("too much")
            return super().fit(features, targets, counts=counts, seed=seed)

    study = run(12, cost_model=Fragile())
    assert len(set(configurations(study))) == 12
    assert "random: the cost model failed: ArithmeticError('too much')" in caplog.text
    assert optuna.trial.TrialState.FAIL not in {t.state for t in study.trials}
