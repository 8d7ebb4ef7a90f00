import pytest

from sgquant_optuna.study.metric_words import MetricWords

ACCURACY = MetricWords()
SHARE = MetricWords("AUC", "")
MAE = MetricWords("MAE", "", higher_is_better=False)
RMSE = MetricWords("RMSE", "kJ", higher_is_better=False)


@pytest.mark.parametrize(
    ("metric", "value", "drop", "texts"),
    [
        (ACCURACY, 81.2, 0.304, ("81.20 %", "0.30 points", "0.304 points")),
        (SHARE, 0.81234, 0.0005, ("0.8123", "0.0005", "0.0005")),
        (MAE, 0.003123, 0.0000213, ("0.003123", "2.13e-05", "2.13e-05")),
        (RMSE, 40_000.4, 12.34567, ("40,000 kJ", "12.35 kJ", "12.34567 kJ")),
        (RMSE, 999.96, 1_500_000.0, ("1000 kJ", "1,500,000 kJ", "1,500,000 kJ")),
    ],
)
def test_values_and_drops_have_digits_enough_and_their_unit(metric, value, drop, texts):
    assert (metric.value(value), metric.drop(drop), metric.limit(drop)) == texts


def test_much_is_a_hundred_points_or_the_value_itself():
    assert ACCURACY.scale(81.2) == 100
    assert MAE.scale(0.003) == 0.003
    assert RMSE.scale(-40_000.0) == 40_000
    assert MAE.scale(0.0) == 1


def test_axes_name_the_unit_and_errors_are_worse_above():
    assert ACCURACY.labelled("expected drop") == "expected drop in points"
    assert RMSE.labelled("expected drop") == "expected drop in kJ"
    assert MAE.labelled("expected drop") == "expected drop"
    assert (ACCURACY.worse_side, MAE.worse_side) == ("below", "above")
