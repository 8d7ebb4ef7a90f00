"""A training leaves the process and the model as they were, and no thread changes another's."""

import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv

from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.graph.training import accuracy, fit
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.search.objective import QuantizationObjective

SHORT = TrainingConfig(epochs=4)


def attributes(model):
    return [dict(vars(module)) for module in model.modules() if isinstance(module, GCNConv)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("place", ["forward", "epoch"])
def test_state_and_methods_are_restored_after_any_exception(error, place, graph):
    class Fails(GCN):
        calls = 0

        def forward(self, x, edge_index):
            self.calls += 1
            if place == "forward" and self.calls > 4:
                raise error
            return super().forward(x, edge_index)

    def stop(*args):
        if place == "epoch":
            raise error

    model = Fails(12, 3)
    before, state = attributes(model), torch.random.get_rng_state()
    with pytest.raises(error):
        fit(model, graph, SHORT, on_epoch=stop)
    assert torch.random.get_rng_state().equal(state)
    assert [set(one) for one in attributes(model)] == [set(one) for one in before]
    assert all(one["_cached_edge_index"] is None for one in attributes(model))
    assert fit(copy.deepcopy(GCN(12, 3)), graph, SHORT).epochs == 4  # no lock is held


def test_copies_and_pickles_made_meanwhile_have_plain_methods(graph):
    model, taken = GCN(12, 3), []

    def take(*args):
        taken.extend([copy.deepcopy(model), pickle.loads(pickle.dumps(model))])

    fit(model, graph, TrainingConfig(epochs=1), on_epoch=take)
    fixed = FixedGraph(graph)
    for one in taken:
        method = one.conv1.propagate
        assert method.__self__ is one.conv1 and method.__func__ is GCNConv.propagate
        with fixed.speed_up(one):  # and are as fast as any other
            assert one.conv1.propagate is not method
        assert one.conv1.propagate is method
        assert accuracy(one, graph, graph.val_mask) == accuracy(one, fixed, graph.val_mask)


def test_a_block_within_a_block_and_a_training_within_a_training(graph):
    fixed, model, inner = FixedGraph(graph), GCN(12, 3), []
    alone = fit(copy.deepcopy(model), graph, SHORT)

    def nested(*args):
        inner.append(fit(GCN(12, 3), fixed, SHORT))
        accuracy(model, fixed, graph.val_mask)
        assert "propagate" in vars(model.conv1)

    before = [set(one) for one in attributes(model)]
    assert fit(copy.deepcopy(model), fixed, SHORT).losses == alone.losses
    fit(model, fixed, SHORT, on_epoch=nested)
    assert [set(one) for one in attributes(model)] == before and len(inner) == 4


def test_results_do_not_depend_on_what_ran_on_the_graph_before(graph):
    """Edges beyond the first eight go PyG's way, whose sums differ in the last bit."""

    class Drops(GCN):
        def forward(self, x, edge_index):
            keep = torch.rand(edge_index.shape[1]) < 0.5
            return super().forward(x, edge_index[:, keep] if self.training else edge_index)

    fixed, model = FixedGraph(graph), Drops(12, 3)
    config = TrainingConfig(epochs=20, patience=20)
    results = []
    for seed in (0, 1, 0):
        one = copy.deepcopy(model)
        results.append((fit(one, fixed, config, seed=seed).losses, one.conv1.lin.weight))
    assert results[0][0] == results[2][0] and results[0][1].equal(results[2][1])


def test_trainings_in_threads_are_those_of_a_serial_run(graph):
    models = [GCN(12, 3) for _ in range(6)]
    config = TrainingConfig(epochs=15)
    serial = [fit(copy.deepcopy(model), graph, config, seed=1) for model in models]
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda model: fit(model, graph, config, seed=1), models))
    assert found == serial
    assert torch.random.get_rng_state().equal(state)


def test_a_study_with_two_threads_measures_what_one_thread_measures(graph):
    torch.manual_seed(0)
    model = GCN(12, 3, hidden_channels=8)
    fit(model, graph, TrainingConfig(epochs=20))
    measured = []
    for jobs in (1, 2):
        objective = QuantizationObjective(
            model, graph, granularity="lwq", finetuning=TrainingConfig(epochs=5), max_drop=50.0
        )
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for widths in ([1, 2], [2, 8], [8, 1], [4, 4], [1, 1], [8, 8]):
            study.enqueue_trial(dict(zip(("conv1", "conv2"), widths, strict=True)))
        state = torch.random.get_rng_state()
        study.optimize(objective, n_trials=6, n_jobs=jobs)
        assert torch.random.get_rng_state().equal(state)
        measured.append(
            sorted((str(trial.params), trial.user_attrs["accuracy"]) for trial in study.trials)
        )
    assert measured[0] == measured[1]


def test_the_signature_of_a_method_stays(graph):
    conv = GCNConv(12, 3)
    expected = inspect.signature(conv.forward)
    with FixedGraph(graph).speed_up(nn.ModuleList([conv])):
        assert inspect.signature(conv.forward) == expected
